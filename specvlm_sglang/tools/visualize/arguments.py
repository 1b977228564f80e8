"""The arguments of ``specvlm visualize``; importable without torch."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("video", type=Path, help="your clip, for example an mp4 file")
    add("question", help="what to ask about it")
    add("--out", type=Path, default=Path("demo/visualize.html"), help="the page")
    add("--url", help="of a running SPECVLM server; default: one is started")
    add("--api-key", help="of that server; default: OPENAI_API_KEY")
    add("--target", help="your target model; default: the shipped one")
    add("--draft", help="your draft model; default: the shipped one")
    add("--retention", type=float, default=0.1, help="share of video tokens that the draft keeps")
    add("--policy", default="specvlm", help="which tokens are kept")
    add("--steps", type=int, default=5, help="draft tokens per verify round")
    add("--max-tokens", type=int, default=160, help="length limit of the answer")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of both models")
