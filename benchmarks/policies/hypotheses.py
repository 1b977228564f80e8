"""What the table says of the hypotheses about why a rule is better.

    python -m benchmarks.policies.hypotheses --work DIR --results benchmarks/results/policies

``--work`` has the prompts that `python -m benchmarks.policies` prepared, ``--results`` its
``rounds.json``. Differences are of accept lengths on the same prompts, with 95 % bootstrap
intervals over clips; correlations are Spearman's, over prompts, with intervals drawn the same way.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.policies.measure import RETENTIONS
from benchmarks.policies.prompts import SETS, Prepared, stored
from benchmarks.policies.statistics import SAMPLES, SetRounds
from reference.selection import video_token_budget

AT = 0.1
"""The retention at which correlations are looked at."""
PAIRS = (
    ("spreading over Top-K (H3)", "attention-spread", "attention"),
    ("weighing by change (H5)", "attention-change-spread", "attention-spread"),
    ("product over sum (H6)", "attention-change-spread", "attention+change-spread"),
    ("attention to the power 0.5 over 0 in a cover (H8)", "scope", "floc"),
    ("attention to the power 1 over 0.5 in a cover (H8)", "attention/cover", "scope"),
    ("change of pixels over change of features (H12)", "pixel-change", "change"),
)
"""What is compared: by name, a policy, and the one that it is compared with."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.policies.hypotheses", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder of prepared prompts")
    add("--results", type=Path, required=True, help="folder with rounds.json")
    options = parser.parse_args()
    data = json.loads((options.results / "rounds.json").read_text())
    text = "\n".join([*_differences(data), "", *_correlations(data, options.work)]) + "\n"
    (options.results / "hypotheses.md").write_text(text)
    print(text)


def _differences(data: dict[str, Any]) -> Iterator[str]:
    yield "| | set | " + " | ".join(f"{share:g}" for share in RETENTIONS) + " |"
    yield "|---" * (2 + len(RETENTIONS)) + "|"
    sets = {name: SetRounds(part) for name, part in data.items()}
    for title, policy, other in PAIRS:
        for name, found in sets.items():
            cells = []
            for share in RETENTIONS:
                settings = f"{policy}@{share:g}", f"{other}@{share:g}"
                if any(one not in data[name]["rounds"] for one in settings):
                    cells.append("")
                    continue
                mean, low, high = found.difference(*settings)
                mark = "**" if low > 0 else "*" if high < 0 else ""
                cells.append(f"{mark}{mean:+.2f}{mark} [{low:+.2f}, {high:+.2f}]")
            if any(cells):
                yield f"| {title} | {name} | " + " | ".join(cells) + " |"


def _correlations(data: dict[str, Any], work: Path) -> Iterator[str]:
    yield f"| at {AT:.0%} kept, over prompts | " + " | ".join(data) + " |"
    yield "|---" * (1 + len(data)) + "|"
    prompts = {name: list(stored(name, work)) for name in SETS if name in data}
    rows: Sequence[tuple[str, Callable[[Prepared], float], Callable[[_Lengths], _Array]]] = (
        (
            "neighbours among the highest, and what spreading gains over `specvlm` (H1)",
            neighbouring_share,
            lambda lengths: lengths(f"attention-spread@{AT:g}") - lengths(f"specvlm@{AT:g}"),
        ),
        (
            "attention on the video, and accept length of `specvlm`",
            lambda prompt: float(prompt.scores.sum()),
            lambda lengths: lengths(f"specvlm@{AT:g}"),
        ),
        (
            "share of it on the kept tokens of `attention`, and accept length of `specvlm`",
            _mass_of_highest,
            lambda lengths: lengths(f"specvlm@{AT:g}"),
        ),
    )
    for title, property_of, gain in rows:
        cells = []
        for name, part in data.items():
            known = {(one.clip, one.kind): property_of(one) for one in prompts.get(name, [])}
            keys = [(one["clip"], one["kind"]) for one in part["prompts"]]
            places = [place for place, key in enumerate(keys) if key in known]
            if len(places) < len(keys):
                cells.append(f"{len(places)} of {len(keys)} prompts prepared")
                continue
            clips = np.array([clip for clip, _ in keys])
            x, y = np.array([known[key] for key in keys]), gain(_Lengths(part))
            mean, low, high = spearman(x, y, clips)
            cells.append(f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]")
        yield f"| {title} | " + " | ".join(cells) + " |"


_Array = npt.NDArray[np.float64]


class _Lengths:
    """Accept lengths of the prompts of one set by setting."""

    def __init__(self, part: dict[str, Any]) -> None:
        self._rounds = part["rounds"]
        self._tokens = np.array([one["tokens"] for one in part["prompts"]], np.float64)

    def __call__(self, setting: str) -> _Array:
        found: _Array = self._tokens / np.array(self._rounds[setting])
        return found


def neighbouring_share(prompt: Prepared) -> float:
    """Share of the K highest tokens that have a higher one among the 26 places around them."""
    budget = video_token_budget(len(prompt.video), AT)
    order = np.argsort(-prompt.scores, kind="stable")[:budget]
    rank = np.full(len(prompt.video), np.iinfo(np.int64).max)
    rank[order] = np.arange(budget)
    padded = np.pad(rank.reshape(prompt.grid), 1, constant_values=np.iinfo(np.int64).max)
    boxes = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3))
    first = boxes.min(axis=(-3, -2, -1)).reshape(-1)
    return float((first[order] < rank[order]).mean())


def _mass_of_highest(prompt: Prepared) -> float:
    budget = video_token_budget(len(prompt.video), AT)
    total = float(prompt.scores.sum())
    return float(np.sort(prompt.scores)[-budget:].sum()) / total if total else 0.0


def spearman(x: _Array, y: _Array, clips: npt.NDArray[np.int64]) -> tuple[float, float, float]:
    """Rank correlation with its 95 % bootstrap interval; prompts of one clip are drawn together."""
    rng = np.random.default_rng(0)
    by_clip = [np.flatnonzero(clips == clip) for clip in np.unique(clips)]
    drawn = []
    for _ in range(SAMPLES // 4):
        chosen = rng.integers(len(by_clip), size=len(by_clip))
        places = np.concatenate([by_clip[clip] for clip in chosen])
        drawn.append(_correlation(x[places], y[places]))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return _correlation(x, y), float(low), float(high)


def _correlation(x: _Array, y: _Array) -> float:
    ranks = [_ranks(values) for values in (x, y)]
    if any(np.ptp(one) == 0 for one in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: _Array) -> _Array:
    """Places in ascending order, ties sharing their mean."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: _Array = (np.cumsum(counts) - (counts - 1) / 2)[group]
    return found


if __name__ == "__main__":
    main()
