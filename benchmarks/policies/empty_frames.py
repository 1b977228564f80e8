"""Frames of the token grid of which a policy keeps no token, on prompts that were prepared before.

    python -m benchmarks.policies.empty_frames --work DIR [--text 9]

Families that state the time of each frame as text (Qwen3-VL, GLM-V) keep that text in the draft's
prompt. This says how much of it stands before frames without any kept token, so what a draft would
save that dropped it. Qwen2.5-VL's scores and grids, from `python -m benchmarks.policies`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.policies.measure import RETENTIONS, Kept, settings
from benchmarks.policies.prompts import SETS, Prepared, stored

POLICIES = ("specvlm", "uniform", "attention-spread", "attention-change-spread", "specvlm-spread")


def empty_share(prompt: Prepared, kept: np.ndarray) -> float:
    """Share of the grid's frames of which nothing is kept."""
    frames, rows, columns = prompt.grid
    return 1 - len(np.unique(kept // (rows * columns))) / frames


def saved_share(empty: float, per_frame: float, retention: float, text: int) -> float:
    """Share of the draft's tokens of a video that are times of frames without a kept token."""
    return empty * text / (retention * per_frame + text)


def rows(folder: Path, name: str, text: int) -> Iterator[str]:
    """Lines of one set's table; none where nothing of it was prepared."""
    prompts = list(stored(name, folder))
    if not prompts:
        return
    per_frame = np.mean([len(prompt.video) / prompt.grid[0] for prompt in prompts])
    yield f"\n### {name}: {len(prompts)} prompts, {per_frame:.1f} tokens a frame\n"
    yield "| policy | " + " | ".join(f"{share:g}" for share in RETENTIONS) + " |"
    yield "|---" * (1 + len(RETENTIONS)) + "|"
    chosen = settings(POLICIES)
    empty = {setting: [] for setting in chosen}
    for prompt in prompts:
        kept = Kept(prompt, seed=prompt.clip)
        for setting in chosen:
            empty[setting].append(empty_share(prompt, kept.of(setting)))
    for policy in POLICIES:
        cells = []
        for setting in chosen:
            if setting.policy == policy:
                mean = float(np.mean(empty[setting]))
                saved = saved_share(mean, per_frame, setting.retention, text)
                cells.append(f"{mean:.0%} ({saved:.0%})")
        yield f"| `{policy}` | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder of prepared prompts")
    add("--text", type=int, default=9, help="tokens of one time, with what encloses the frame")
    options = parser.parse_args()
    print(
        "Frames without a kept token, and in brackets what their times are of the draft's tokens."
    )
    for name in SETS:
        print(*rows(options.work, name, options.text), sep="\n")


if __name__ == "__main__":
    main()
