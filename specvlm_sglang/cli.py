"""The ``specvlm`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``specvlm``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="specvlm", description="Speculative decoding for video LLMs in SGLang."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="say whether this machine would serve, and why not")
    doctor.add_argument("--target", help="target model to check with --draft")
    doctor.add_argument("--draft", help="draft model to check with --target")
    options = parser.parse_args(arguments)
    if (options.target is None) != (options.draft is None):
        parser.error("--target and --draft go together")
    from specvlm_sglang.doctor import examine

    return examine(options.target, options.draft)


if __name__ == "__main__":
    sys.exit(main())
