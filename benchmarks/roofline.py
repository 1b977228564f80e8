"""What the cost model computes for the published pairs, beside what was published about them.

    python -m benchmarks.roofline --out benchmarks/results

Nothing here is measured: `specvlm_sglang.tools.sizing.cost` reduces each forward pass to bytes and
floating-point operations at the peak rates of a data sheet. Its times are lower bounds; the report
says how to read the difference to a published speedup. Predictions for our own rounds add what
kernels and launches cost, between two assumptions, and say how to refute them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.roofline_report import draw, markdown
from specvlm_sglang.tools.sizing.cost import (
    HARDWARE,
    Hardware,
    what_would_pruning_buy,
    what_would_self_drafting_buy,
)
from specvlm_sglang.tools.sizing.published import published_model

SHOWN = ("A100", "H100", "H200")
RETENTION = 0.1
TEXT_TOKENS = 64
NEW_TOKENS = 256
KEPT_ACCEPTANCE = 0.9
"""The paper: at 90 % pruned the draft keeps about so much of the unpruned accept length."""


ROUND_LAUNCHES = 60
"""Of a steady round of a chain of three beside the models' passes, two requests, without CUDA
graphs, which would make fewer: counted on `cuda` tensors without contents
(``tests/test_fake_cuda.py``). Those of plain decoding are not taken off."""
OVERHEADS = {"low": (1e-6, 2e-6), "high": (3e-6, 10e-6)}
"""Seconds of a kernel in a graph beside its bytes and operations, and of a launch by the host:
assumptions. The low ones are of a host that overlaps, so that only the device has to begin."""
ACCEPTED = (0.9, 1.0)
"""Of the published accept length, with the high and the low overheads."""


@dataclass(frozen=True)
class Published:
    """A published measurement, and what the cost model needs to know about it.

    Attributes
    ----------
    speedup
        Decode speedup over plain decoding, as published.
    accept_length
        Tokens per verify round, bonus INCLUDED; None where none was published.
    draft_steps, draft_tokens
        Draft forwards, and tokens verified (root included), of a round.
    hardware
        A name of `HARDWARE`; None where it was not stated.
    video_tokens
        Of the prompt; an assumption unless ``note`` says otherwise.
    note
        What was assumed.
    """

    source: str
    target: str
    draft: str
    speedup: float
    accept_length: float | None
    draft_steps: int
    draft_tokens: int
    hardware: str | None
    video_tokens: int
    note: str


_TREE, _CHAIN_10, _CHAIN_5 = (5, 26), (10, 11), (5, 6)
_OV_72B, _OV_7B, _OV_SMALL = (f"llava-onevision-{size}" for size in ("72b", "7b", "0.5b"))
_QWEN_32B, _QWEN_7B, _QWEN_3B = (f"qwen2.5-vl-{size}" for size in ("32b", "7b", "3b"))
_PAPER, _SURVEY, _PARALLEL = "SpecVLM, headline", "SpecVLM's authors, survey", "ParallelVLM, table"
_HEADLINE = "authors' tree of 26; 64 frames assumed"
_EXCLUDED = "published accept length + 1 for the bonus; 64 frames and 90 % pruned assumed"
_UNSTATED = "128 frames as published; bonus taken as included; 90 % pruned assumed"

PUBLISHED = (
    Published(_PAPER, _OV_72B, _OV_7B, 2.68, None, *_TREE, None, 64 * 196, _HEADLINE),
    Published(_PAPER, _QWEN_32B, _QWEN_7B, 2.11, None, *_TREE, None, 32 * 256, _HEADLINE),
    Published(_SURVEY, _QWEN_32B, _QWEN_7B, 1.40, 4.40, *_CHAIN_10, "H200", 32 * 256, _EXCLUDED),
    Published(_SURVEY, _QWEN_32B, _QWEN_3B, 0.97, 3.99, *_CHAIN_10, "H200", 32 * 256, _EXCLUDED),
    Published(_SURVEY, _QWEN_7B, _QWEN_7B, 1.26, 6.31, *_CHAIN_10, "H200", 32 * 256, _EXCLUDED),
    Published(_PARALLEL, _OV_72B, _OV_7B, 2.74, 4.4, *_CHAIN_5, "L40S", 25_088, _UNSTATED),
    Published(_PARALLEL, _QWEN_32B, _QWEN_7B, 2.11, 4.2, *_CHAIN_5, "L40S", 25_088, _UNSTATED),
    Published(_PARALLEL, _OV_7B, _OV_SMALL, 1.81, 4.8, *_CHAIN_5, "L40S", 25_088, _UNSTATED),
    Published(_PARALLEL, _QWEN_7B, _QWEN_7B, 1.215, None, *_CHAIN_5, "L40S", 25_088, _UNSTATED),
)
"""Measurements by others (SpecVLM: arXiv 2508.16201). 64 frames are 196 tokens each for
LLaVA-OneVision; 256 for every two of at most 448 x 448 pixels for Qwen2.5-VL."""


def computed_speedup(row: Published, hardware: Hardware, accept_length: float) -> float:
    """Decode speedup of a pruned draft in the setting of ``row``, without any overhead."""
    report = what_would_pruning_buy(
        published_model(row.target),
        published_model(row.draft),
        hardware,
        row.video_tokens,
        TEXT_TOKENS,
        RETENTION,
        accept_length,
        row.draft_steps,
        row.draft_tokens,
        new_tokens=NEW_TOKENS,
    )
    return report.pruned.decode_speedup


def compare(row: Published) -> dict[str, Any]:
    """One published measurement beside the computed ones, JSON-ready.

    ``computed`` is by hardware and empty without an accept length. ``residual`` is published minus
    computed, and ``share_reached`` their quotient, on the hardware of the measurement.
    ``accept_length_needed`` is what the published speedup needs at the least, by hardware; above
    ``draft_steps + 1`` the model cannot explain it.
    """
    computed: dict[str, float] = {}
    if row.accept_length is not None:
        computed = {
            name: computed_speedup(row, hardware, row.accept_length)
            for name, hardware in HARDWARE.items()
        }
    needed = {
        # Speedup is proportional to the accept length.
        name: row.speedup / computed_speedup(row, hardware, 1.0)
        for name, hardware in HARDWARE.items()
    }
    there = computed.get(row.hardware) if row.hardware is not None else None
    return {
        **asdict(row),
        "computed": computed,
        "residual": None if there is None else row.speedup - there,
        "share_reached": None if there is None else row.speedup / there,
        "accept_length_needed": needed,
    }


def prediction(row: Published, hardware: Hardware, batch: int) -> dict[str, Any]:
    """What pruning to 10 % would buy a published pair, JSON-ready; times in seconds."""
    if row.accept_length is None:
        raise ValueError(f"{row.source}, {row.target} / {row.draft}: no accept length is published")
    unpruned = min(row.accept_length / KEPT_ACCEPTANCE, row.draft_steps + 1)
    report = what_would_pruning_buy(
        published_model(row.target),
        published_model(row.draft),
        hardware,
        row.video_tokens,
        TEXT_TOKENS,
        RETENTION,
        row.accept_length,
        row.draft_steps,
        row.draft_tokens,
        batch,
        NEW_TOKENS,
        unpruned_accept_length=unpruned,
        query_rows=TEXT_TOKENS,
    )
    return {
        "target": row.target,
        "draft": row.draft,
        "hardware": hardware.name,
        "batch": batch,
        "video_tokens": row.video_tokens,
        "accept_length": row.accept_length,
        "unpruned_accept_length": unpruned,
        **asdict(report),
    }


def own_prediction(row: Published, hardware: str, batch: int) -> dict[str, Any]:
    """Decode speedups of our rounds at 10 % kept, from low to high, JSON-ready.

    Raises
    ------
    ValueError
        No accept length is published.
    """
    if row.accept_length is None:
        raise ValueError(f"{row.source}, {row.target} / {row.draft}: no accept length is published")

    def speedups(seconds: tuple[float, float], share: float, launches: int) -> dict[str, float]:
        kernel, launch = seconds
        device = replace(HARDWARE[hardware], kernel_seconds=kernel, launch_seconds=launch)
        report = what_would_pruning_buy(
            published_model(row.target),
            published_model(row.draft),
            device,
            row.video_tokens,
            TEXT_TOKENS,
            RETENTION,
            share * float(row.accept_length or 0),
            row.draft_steps,
            row.draft_tokens,
            batch,
            NEW_TOKENS,
            query_rows=TEXT_TOKENS,
            launches=launches,
        )
        return {
            "decode": report.pruned.decode_speedup,
            "end_to_end": report.pruned.end_to_end_speedup,
            "round_ms": report.pruned.seconds_per_token * share * (row.accept_length or 0) * 1e3,
        }

    return {
        "target": row.target,
        "draft": row.draft,
        "hardware": hardware,
        "batch": batch,
        "video_tokens": row.video_tokens,
        "accept_length": row.accept_length,
        "low": speedups(OVERHEADS["high"], ACCEPTED[0], ROUND_LAUNCHES),
        "high": speedups(OVERHEADS["low"], ACCEPTED[1], ROUND_LAUNCHES),
        "no_overhead": speedups((0.0, 0.0), 1.0, 0),
    }


ALONE = [
    (target, video_tokens, batch)
    for target in (_QWEN_7B, _QWEN_32B, "qwen2.5-vl-72b")
    for video_tokens in (8_192, 25_088)
    for batch in (1, 8, 16, 32)
]
"""Targets that draft for themselves: model, video tokens of each request, batch."""
ALONE_STEPS = 3


def self_prediction(target: str, video_tokens: int, batch: int, hardware: str) -> dict[str, Any]:
    """What a target that drafts for itself at 10 % would cost and buy at the most, JSON-ready."""
    report = what_would_self_drafting_buy(
        published_model(target),
        HARDWARE[hardware],
        video_tokens,
        TEXT_TOKENS,
        RETENTION,
        ALONE_STEPS,
        batch,
        NEW_TOKENS,
    )
    return {
        "target": target,
        "hardware": hardware,
        "batch": batch,
        "video_tokens": video_tokens,
        "draft_steps": ALONE_STEPS,
        **asdict(report),
    }


def record(batches: Sequence[int]) -> dict[str, Any]:
    """All that is computed, JSON-ready."""
    pairs = [row for row in PUBLISHED if row.source == _PARALLEL and row.accept_length is not None]
    return {
        "kind": "computed by tools.sizing.cost, not measured",
        "retention": RETENTION,
        "text_tokens": TEXT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "hardware": {name: asdict(hardware) for name, hardware in HARDWARE.items()},
        "published": [compare(row) for row in PUBLISHED],
        "predictions": [
            prediction(row, HARDWARE[name], batch)
            for row in pairs
            for batch in batches
            for name in SHOWN
        ],
        "round_launches": ROUND_LAUNCHES,
        "overheads": OVERHEADS,
        "accepted": ACCEPTED,
        "own_predictions": [
            own_prediction(row, "H100", batch) for row in pairs for batch in batches
        ],
        "self_predictions": [self_prediction(*setting, "H100") for setting in ALONE],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``roofline.json``, ``roofline.md`` and ``roofline.png``."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.roofline", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="batch sizes")
    options = parser.parse_args(arguments)
    if min(options.batch) < 1:
        parser.error(f"--batch {min(options.batch)} must be at least 1")
    words = sys.argv[1:] if arguments is None else arguments
    found = record(options.batch)
    found["command"] = shlex.join(["python", "-m", "benchmarks.roofline", *words])
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "roofline.json").write_text(json.dumps(found, indent=1) + "\n")
    text = markdown(found, SHOWN)
    (options.out / "roofline.md").write_text(text)
    draw(found, options.out / "roofline.png")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
