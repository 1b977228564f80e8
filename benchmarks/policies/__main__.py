"""One command for the table of policies; given again, it goes on where it stopped.

    python -m benchmarks.policies --work DIR --out benchmarks/results/policies
        [--prompts short=100 questions=100 2k=100 8k=100] [--minutes 60] [--policies NAME ...]

Every prompt is read and answered by the target once (files in ``--work``), then the draft is shown
what each policy keeps. What ``rounds.json`` in ``--out`` has already is not measured again. Answers
are greedy, in float32, by transformers and the NumPy reference.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.policies import cost, report
from benchmarks.policies.measure import MERGE, MERGED, POLICIES, measure, settings
from benchmarks.policies.prompts import SETS, prepared
from benchmarks.policies.record import Record
from benchmarks.tinyvid.reader import Reader

_MODELS = Path("specvlm_sglang/demo/models")
_DEFAULT = ("short=100", "questions=100", "2k=100", "8k=100")


def main() -> None:
    arguments = _parser().parse_args()
    torch.set_num_threads(arguments.threads)
    wanted = _wanted(arguments.prompts)
    policies = arguments.policies or [*POLICIES, *(f"{name}{MERGE}" for name in MERGED)]
    chosen = (
        settings(policies, arguments.retentions) if arguments.retentions else settings(policies)
    )
    target, draft = Reader(arguments.target), Reader(arguments.draft)
    record = Record(arguments.work / ("tuning.jsonl" if arguments.tuning else "rounds.jsonl"))
    if (arguments.out / "rounds.json").exists() and not arguments.tuning:
        record.adopt(arguments.out / "rounds.json")
    names = [str(one) for one in chosen]
    console, stop = Console(), time.monotonic() + 60 * arguments.minutes
    clips = dict.fromkeys(wanted, 0)
    while time.monotonic() < stop:
        open_sets = [
            name for name, count in wanted.items() if record.of_clips(name, clips[name]) < count
        ]
        if not open_sets:
            break
        name = min(open_sets, key=lambda name: record.of_clips(name, clips[name]) / wanted[name])
        clip, began = clips[name], time.monotonic()
        clips[name] += 1
        if record.is_done(name, clip, names):
            continue
        prompts = prepared(name, clip, arguments.work, target, draft, tuning=arguments.tuning)
        for number, prompt in enumerate(prompts):
            missing = [one for one in chosen if not record.has(name, clip, number, str(one))]
            if missing:
                record.add(name, clip, number, prompt, measure(prompt, missing, draft, seed=clip))
        seconds = time.monotonic() - began
        console.print(
            f"{name}: clip {clip}, {record.of_clips(name, clip + 1)} prompts, {seconds:.1f} s"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = record.complete(names)
    if not data:
        raise SystemExit("no prompt is measured under every setting yet: nothing is written")
    (arguments.out / "rounds.json").write_text(json.dumps(data) + "\n")
    if arguments.cost:
        rows = cost.measure(policies)
        (arguments.out / "cost.json").write_text(json.dumps(rows, indent=1) + "\n")
    report.write(arguments.out)


def _wanted(texts: list[str]) -> dict[str, int]:
    found = {}
    for text in texts:
        name, _, count = text.rpartition("=")
        if name not in SETS or not count.isdigit() or int(count) < 1:
            raise SystemExit(
                f"--prompts {text}: must be SET=COUNT, a set of {', '.join(SETS)}, at least 1"
            )
        found[name] = int(count)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.policies", description="Compare the pruning policies."
    )
    add = parser.add_argument
    add("--target", type=Path, default=_MODELS / "target", help="target's directory")
    add("--draft", type=Path, default=_MODELS / "draft", help="draft's directory")
    add("--work", type=Path, required=True, help="folder for prepared prompts and rounds so far")
    add("--out", type=Path, required=True, help="folder for data, tables and picture")
    add(
        "--prompts", nargs="+", default=list(_DEFAULT), metavar="SET=COUNT", help="at least so many"
    )
    add("--policies", nargs="+", metavar="NAME", help=f"default: all; {MERGE} at the end merges")
    add("--retentions", nargs="+", type=float, metavar="SHARE", help="default: 0.25 to 0.025")
    add("--minutes", type=float, default=1e6, help="begin no clip after so many; 0: report only")
    add("--threads", type=int, default=1, help="CPU threads")
    add("--tuning", action="store_true", help="other seeds, to try things out on")
    add("--cost", action="store_true", help="also measure what a selection costs")
    return parser


if __name__ == "__main__":
    main()
