"""The ``specvlm`` command."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from specvlm_sglang.tools.bench.arguments import add_arguments as add_bench_arguments
from specvlm_sglang.tools.visualize.arguments import add_arguments as add_visualize_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``specvlm``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="specvlm", description="Speculative decoding for video LLMs in SGLang."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="say whether this machine would serve, and why not")
    doctor.add_argument("--target", help="target model to check with --draft")
    doctor.add_argument("--draft", help="draft model to check with --target")
    demo = commands.add_parser("demo", help="a real server answers a question about a video")
    _add_demo_flags(demo)
    add_visualize_arguments(
        commands.add_parser("visualize", help="write a page that shows what the draft kept")
    )
    add_bench_arguments(
        commands.add_parser("bench", help="SPECVLM beside plain decoding, measured in one run")
    )
    options = parser.parse_args(arguments)
    if options.command in ("demo", "visualize", "bench"):
        # Background shells start programs with SIGINT ignored; a terminated one cleans up too,
        # and so does one whose terminal is closed.
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sign, signal.default_int_handler)
    if options.command == "visualize":
        from specvlm_sglang.tools.visualize.run import run as visualize

        return visualize(options)
    if options.command == "bench":
        from specvlm_sglang.tools.bench.run import run as bench

        return bench(options)
    if options.command == "demo":
        from specvlm_sglang.tools.demo.run import DemoOptions, run

        chosen = vars(options)
        del chosen["command"]
        return run(DemoOptions(**chosen))
    if (options.target is None) != (options.draft is None):
        parser.error("--target and --draft go together")
    from specvlm_sglang.tools.doctor import examine

    return examine(options.target, options.draft)


def _add_demo_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--video", type=Path, help="an mp4 of yours; default: a procedural clip")
    add("--question", help="what to ask; default: describe it")
    add("--target", help="your target model; default: the shipped one, enlarged")
    add("--draft", help="your draft model; default: the shipped one")
    add("--retention", type=float, default=0.1, help="share of video tokens that the draft keeps")
    add("--steps", type=int, default=5, help="draft tokens per verify round")
    add("--max-tokens", type=int, default=160, help="length limit of the answer")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of both models")
    add("--repeats", type=int, default=3, help="timed answers per server")
    add("--port", type=int, help="of the SPECVLM server; default: a free one")
    add(
        "--parameters",
        type=int,
        default=200_000_000,
        help="enlarge the shipped target to this size without changing its answers; 0: do not",
    )


if __name__ == "__main__":
    sys.exit(main())
