"""Registers, spills and shared memory of the Triton kernels, compiled without a GPU.

    python -m benchmarks.kernels.triton_resources --out benchmarks/results/triton_resources.json

Each kernel as its launcher would launch it, with the default tile, for three generations of GPUs.
Numbers are what ptxas of the installed Triton produces; they change with Triton's version.
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
from tests.support.score_case import ScoreCase
from tests.support.triton_compiler import Launch, launches_of

CAPABILITIES = (80, 90, 100)
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
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        arguments.out.write_text(
            f'{{"triton": "{triton.__version__}", "rows": [\n{lines}\n]}}\n', encoding="utf-8"
        )


if __name__ == "__main__":
    main()
