"""The arguments of ``specvlm batch``; importable without torch."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add(
        "source",
        type=Path,
        help="a folder of videos, searched to its end, or a file of JSON lines: video, and "
        "optionally question, id, max_tokens, retention, policy",
    )
    add("--question", help="asked about every video that has none of its own")
    add("--out", type=Path, required=True, help="answers, one JSON line each; gone on with")
    add("--url", help="of a running server; default: one is started")
    add("--api-key", help="of that server; default: OPENAI_API_KEY")
    add("--target", help="your target model; default: the shipped one")
    add("--draft", help="your draft model; default: the shipped one")
    add("--max-tokens", type=int, default=256, help="length limit of an answer")
    add("--concurrency", type=int, default=4, help="videos asked about at the same time")
    add("--retention", type=float, help="share of video tokens that drafts keep; default: server's")
    add("--policy", help="which tokens are kept; default: the server's")
    add("--steps", type=int, default=5, help="draft tokens per verify round of the server started")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of both models")
    add("--launch", default="", help="further arguments of the server, such as '--tp-size 4'")
