"""Registers, spills and shared memory of the Triton kernels, compiled without a GPU.

    python -m benchmarks.kernels.triton_resources --out benchmarks/results/triton_resources.json

Each kernel as its launcher would launch it, with the default tile, for four generations of GPUs.
Numbers are what ptxas of the installed Triton produces; they change with Triton's version.

Beside them stands what each kernel moves and computes for one layer of a published target, and the
time that an H100's peak rates would need for that: computed, a lower bound, never measured.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import triton
from rich.console import Console
from rich.progress import track
from rich.table import Table

from specvlm_sglang.pruning import triton_stage_one
from specvlm_sglang.scoring import triton_scores
from specvlm_sglang.tools.sizing.cost import Hardware, Work, roofline_seconds
from tests.support.score_case import ScoreCase
from tests.support.triton_compiler import Launch, launches_of

CAPABILITIES = (80, 90, 100, 120)
HEAD_DIMS = (64, 80, 96, 128, 256)
DTYPES = {
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
PAIRS = (
    ("bf16", "bf16"),
    ("fp16", "fp16"),
    ("bf16", "e4m3"),
    ("bf16", "e5m2"),
    ("fp16", "e4m3"),
    ("fp16", "e5m2"),
    ("float32", "float32"),
)
SELECTION = "Stage I"
H100 = Hardware(3.35e12, 989e12, "H100")
"""NVIDIA's data sheet: SXM, dense bfloat16."""
QUERY_HEADS, KV_HEADS, HEAD_DIM, ROWS = 40, 8, 128, 256
"""A layer of Qwen2.5-VL-32B, and query rows at their most."""
VIDEO_TOKENS = (25_000, 64_000)


def _cases() -> dict[str, ScoreCase]:
    """Query dtype x key dtype, head_dim; seven query heads share a KV head, as in Qwen2.5-VL-7B."""
    cases = {}
    for queries, keys in PAIRS:
        for head_dim in HEAD_DIMS:
            case = ScoreCase(
                length=2048,
                rows=32,
                heads=28,
                kv_heads=4,
                head_dim=head_dim,
                dtype=DTYPES[queries],
                key_dtype=DTYPES[keys],
            )
            cases[f"{queries} x {keys}, {head_dim}"] = case
    for head_dim in (128, 256):
        case = cases[f"bf16 x bf16, {head_dim}"]
        capped = {**case.__dict__, "logit_cap": 50.0}
        cases[f"bf16 x bf16, {head_dim}, logit cap"] = ScoreCase(**capped)
    return cases


CASES = _cases()


def launches(case: str | ScoreCase) -> list[Launch]:
    """Launches of one scored layer, or of the selection (`SELECTION`)."""
    if case == SELECTION:
        ranked = torch.empty(1000, device="meta")
        return launches_of(triton_stage_one.stage_one_length, ranked, 0.4, 100)
    shapes = (CASES[case] if isinstance(case, str) else case).shapes()
    return launches_of(triton_scores.add_layer_scores, *shapes)


def measure() -> list[dict[str, Any]]:
    """One row for each kernel, case and GPU generation."""
    rows = []
    combined = set()
    for name in track((*CASES, SELECTION), "compiling"):
        for launch in launches(name):
            for capability in CAPABILITIES:
                case = name
                if launch.name == "combine_splits":
                    # The same whatever the case is.
                    case = "any"
                if (launch.name, case, capability) in combined:
                    continue
                combined.add((launch.name, case, capability))
                options = {key: launch.kwargs.get(key) for key in ("BLOCK_M", "BLOCK_N")}
                rows.append(
                    {
                        "kernel": launch.name,
                        "case": case,
                        "capability": capability,
                        "tile": [size for size in options.values() if size],
                        "warps": launch.kwargs.get("num_warps", 4),
                        **asdict(launch.compiled(capability)),
                    }
                )
    return rows


def work_of_a_layer(video_tokens: int) -> dict[str, Work]:
    """Bytes and floating-point operations by kernel: one layer's scores, one selection.

    Keys are read once for each tile of query rows that a program holds; the count takes what the
    second-level cache cannot save as read once, so it is a lower bound.
    """
    positions = video_tokens + ROWS
    keys = positions * KV_HEADS * HEAD_DIM * 2
    video_keys = video_tokens * KV_HEADS * HEAD_DIM * 2
    queries = ROWS * QUERY_HEADS * HEAD_DIM * 2
    splits = triton.cdiv(positions, triton_scores.KEYS_PER_SPLIT)
    log_sums = ROWS * QUERY_HEADS * 4
    products = 2 * ROWS * QUERY_HEADS * HEAD_DIM
    return {
        "row_log_sums": Work(keys + queries + splits * log_sums, products * positions),
        "combine_splits": Work((splits + 1) * log_sums, 4 * splits * ROWS * QUERY_HEADS),
        "column_sums": Work(
            video_keys + queries + log_sums + KV_HEADS * video_tokens * 4, products * video_tokens
        ),
        "stage_one_length": Work(video_tokens * 4, video_tokens),
    }


def computed() -> list[dict[str, Any]]:
    """One row for each kernel and clip: the roofline of `work_of_a_layer` on an H100."""
    return [
        {
            "kernel": kernel,
            "video_tokens": video_tokens,
            "bytes": work.bytes,
            "flops": work.flops,
            "h100_microseconds": round(roofline_seconds(work, H100) * 1e6, 2),
        }
        for video_tokens in VIDEO_TOKENS
        for kernel, work in work_of_a_layer(video_tokens).items()
    ]


def computed_table(rows: list[dict[str, Any]]) -> Table:
    """Megabytes, gigaflops and microseconds of each kernel, by length of the clip."""
    table = Table("kernel", "video tokens", "MB", "Gflop", "H100, us at its peak rates")
    table.caption = "computed, not measured: one layer of Qwen2.5-VL-32B, 256 query rows"
    for row in rows:
        table.add_row(
            row["kernel"],
            f"{row['video_tokens']:,}",
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['flops'] / 1e9:.2f}",
            f"{row['h100_microseconds']:.2f}",
        )
    return table


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Registers / shared KiB by GPU generation, one line for each kernel and case."""
    table = Table("kernel", "queries x keys, head_dim", *(f"sm_{c}" for c in CAPABILITIES))
    table.caption = "registers of a thread / KiB shared by a program; + spills where there are any"
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for row in rows:
        spills = f" + {row['spills']}" if row["spills"] else ""
        text = f"{row['registers']} / {row['shared'] / 1024:.0f}{spills}"
        cells.setdefault((row["kernel"], row["case"]), {})[row["capability"]] = text
    for (kernel, case), by_capability in cells.items():
        table.add_row(kernel, case, *(by_capability[c] for c in CAPABILITIES))
    return table


def main() -> None:
    """Print the table, and write the numbers where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows = measure()
    Console(width=100).print(table_of(rows))
    bounds = computed()
    Console(width=100).print(computed_table(bounds))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        lines, computed_lines = (
            ",\n".join(f"  {json.dumps(row)}" for row in found) for found in (rows, bounds)
        )
        arguments.out.write_text(
            f'{{"triton": "{triton.__version__}", "rows": [\n{lines}\n], '
            f'"computed, not measured": [\n{computed_lines}\n]}}\n',
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
