"""Evaluates the pair on held-out clips, in transformers with the NumPy reference.

    python -m benchmarks.tinyvid.evaluate --target T --draft D --out benchmarks/results/tinyvid

Clips are real mp4 files, read by the pair's own processor. Accept lengths count the tokens of a
verify round, bonus included, for a greedy chain of five.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from benchmarks.tinyvid.acceptance import Rounds, Setting, interval, measure, settings
from benchmarks.tinyvid.clips import HELD_OUT, LENGTHS, held_out
from benchmarks.tinyvid.facts import compare, shares
from benchmarks.tinyvid.plot import draw, tabulate
from benchmarks.tinyvid.reader import Reader
from specvlm_sglang.pruning.registry import MERGE, check_policy

_QUESTION_SEEDS, _ACCEPTANCE_SEEDS = HELD_OUT + 1_000_000, HELD_OUT + 2_000_000


def fact_accuracy(
    reader: Reader, folder: Path, length: str, count: int, *, exact: bool
) -> tuple[dict[str, float], list[list[int]]]:
    """Share of right facts in greedy captions by kind, and the captions as tokens."""
    counts, answers = [], []
    prompts = held_out(LENGTHS[length], count, folder)
    for prompt in track(prompts, f"captions, {length}", total=count):
        answers.append(reader.greedy(reader.question(prompt, exact=exact)))
        counts.append(compare(reader.text(answers[-1]), prompt.answer))
    return shares(counts), answers


def question_accuracy(reader: Reader, folder: Path, count: int, *, exact: bool) -> dict[str, float]:
    """Share of questions answered word for word, by kind."""
    right = defaultdict[str, list[bool]](list)
    prompts = list(held_out(LENGTHS["training"], count, folder, first=_QUESTION_SEEDS, ask=True))
    for prompt in track(prompts, "questions"):
        answer = reader.text(reader.greedy(reader.question(prompt, exact=exact)))
        right[prompt.kind].append(answer == prompt.answer)
    every = [hit for hits in right.values() for hit in hits]
    return {kind: float(np.mean(hits)) for kind, hits in right.items()} | {
        "all": float(np.mean(every))
    }


def agreement(first: list[list[int]], second: list[list[int]]) -> dict[str, float]:
    """How alike the greedy answers of two models are."""
    same = [a == b for a, b in zip(first, second, strict=True)]
    prefixes = []
    for a, b in zip(first, second, strict=True):
        equal = [x == y for x, y in zip(a, b, strict=False)] + [False]
        prefixes.append(equal.index(False) / max(len(a), 1))
    return {"same_answer": float(np.mean(same)), "common_prefix": float(np.mean(prefixes))}


def acceptance(
    target: Reader,
    draft: Reader,
    folder: Path,
    length: str,
    count: int,
    *,
    exact: bool,
    ask: bool,
    policies: list[str] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Accept length of every setting with its interval, and the target's attention."""
    chosen = settings(policies)
    rounds = defaultdict[Setting, list[Rounds]](list)
    attention = []
    prompts = list(held_out(LENGTHS[length], count, folder, first=_ACCEPTANCE_SEEDS, ask=ask))
    for index, prompt in enumerate(track(prompts, f"accept length, {length}")):
        found, mass = measure(target, draft, prompt, chosen, exact=exact, seed=index)
        attention.append(mass)
        for setting, value in found.items():
            rounds[setting].append(value)
    rows = []
    for setting in chosen:
        mean, low, high = interval(rounds[setting])
        values = {"accept_length": mean, "low": low, "high": high}
        rounded = {name: round(value, 4) for name, value in values.items()}
        rows.append(
            {"clips": length, "prompts": len(prompts), "asked": ask, **vars(setting), **rounded}
        )
    return rows, {key: float(np.mean([mass[key] for mass in attention])) for key in attention[0]}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tinyvid.evaluate", description="Evaluate the tiny pair."
    )
    parser.add_argument("--target", type=Path, required=True, help="target's directory")
    parser.add_argument(
        "--draft", type=Path, help="draft's directory; without it, facts of the target"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and plot")
    parser.add_argument("--clips", type=int, default=100, help="held-out clips per measurement")
    parser.add_argument(
        "--long-clips", type=int, default=100, help="the same of 64 frames; 0: none"
    )
    parser.add_argument(
        "--lengths",
        nargs="+",
        default=list(LENGTHS),
        choices=list(LENGTHS),
        help="clips for the target's facts",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--plain-positions",
        action="store_true",
        help="time ids as in plain SGLang, without --specvlm-exact-vision",
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["facts", "questions", "acceptance"],
        choices=["facts", "questions", "acceptance"],
        help="what to measure",
    )
    parser.add_argument(
        "--policies",
        nargs="+",
        metavar="NAME",
        help="accept length of these only; SPECVLM_POLICY_FILE names a file with your own",
    )
    arguments = parser.parse_args()
    for name in arguments.policies or ():
        check_policy(name, "--policies")
        if name.endswith(MERGE):
            parser.error(f"--policies {name}: python -m benchmarks.policies measures merging")
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    exact = not arguments.plain_positions
    target = Reader(arguments.target)
    draft = Reader(arguments.draft) if arguments.draft else None
    report = _read(arguments.out / "facts.json")
    command = shlex.join(["python", "-m", "benchmarks.tinyvid.evaluate", *sys.argv[1:]])
    report.setdefault("commands", []).append(command)
    numbers = {
        name: arguments.clips if LENGTHS[name].seconds[0] < 16 else arguments.long_clips
        for name in LENGTHS
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        readers = {"target": target} | ({"draft": draft} if draft else {})
        answers: dict[str, list[list[int]]] = {}
        for role, reader in readers.items():
            found = report.setdefault(role, {})
            if "facts" in arguments.parts:
                for length in arguments.lengths if role == "target" else ("training",):
                    found[f"facts, {length}"], said = fact_accuracy(
                        reader, folder, length, numbers[length], exact=exact
                    )
                    if length == "training":
                        answers[role] = said
            if "questions" in arguments.parts:
                found["questions"] = question_accuracy(
                    reader, folder, arguments.clips // 3, exact=exact
                )
            _write(arguments.out / "facts.json", report)
        if len(answers) == 2:
            report["agreement"] = agreement(answers["target"], answers["draft"])
            _write(arguments.out / "facts.json", report)
        if draft is not None and "acceptance" in arguments.parts:
            rows: list[dict[str, Any]] = []
            for length, ask in (("training", False), ("2k tokens", False), ("training", True)):
                count = numbers[length] // 3 if ask else numbers[length]
                if not count:
                    continue
                more, attention = acceptance(
                    target,
                    draft,
                    folder,
                    length,
                    count,
                    exact=exact,
                    ask=ask,
                    policies=arguments.policies,
                )
                rows += more
                report.setdefault("attention", {})[f"{length}{', questions' if ask else ''}"] = (
                    attention
                )
                _write(arguments.out / "facts.json", report)
                with (arguments.out / "accept_length.csv").open("w", newline="") as file:
                    table = csv.DictWriter(file, rows[0].keys())
                    table.writeheader()
                    table.writerows(rows)
                (arguments.out / "accept_length.md").write_text(tabulate(rows))
            draw(rows, arguments.out / "accept_length.png")


def _read(path: Path) -> dict[str, Any]:
    """An earlier report, to which further parts are added."""
    return json.loads(path.read_text()) if path.exists() else {}


def _write(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(_rounded(report), indent=2) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
