"""The flags of ``specvlm soak``; importable without torch."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the soak."""
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="length of the load")
    add("--concurrency", type=int, default=12, help="requests at once")
    add("--seed", type=int, default=0, help="which requests come, and where they are cut")
    add("--target", help="your target model; default: the shipped one")
    add("--draft", help="your draft model; default: the shipped one")
    add(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="float32",
        help="of both models; in bfloat16 rounding alone makes some answers differ",
    )
    add("--steps", type=int, default=3, help="draft tokens per verify round")
    add("--kv-tokens", type=int, help="size of the target's KV cache; small: everything retracts")
    add("--launch", default="", help="further arguments of the SPECVLM server")
    add("--out", type=Path, help="write the record there, as JSON")
