"""The flags of ``specvlm demo``; importable without torch."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the demo."""
    add = parser.add_argument
    add("--video", type=Path, help="an mp4 of yours; default: a procedural clip")
    add("--question", help="what to ask; default: describe it")
    add("--target", help="your target model; default: the shipped one, enlarged")
    add("--draft", help="your draft model; default: the shipped one")
    add("--retention", type=float, default=0.1, help="share of video tokens that the draft keeps")
    add("--steps", type=int, default=5, help="draft tokens per verify round")
    add("--max-tokens", type=int, default=160, help="length limit of the answer")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of both models")
    add("--repeats", type=int, default=3, help="timed answers per server; medians are shown")
    add("--port", type=int, help="of the SPECVLM server; default: a free one")
    add(
        "--parameters",
        type=int,
        default=200_000_000,
        help="enlarge the shipped target to this size without changing its answers, so that it "
        "costs what a real one does beside its draft; 0: do not",
    )
