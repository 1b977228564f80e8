"""The ``specvlm`` command: the one place that prints a tool's error and chooses the exit status."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from specvlm_sglang.tools.batch.arguments import add_arguments as add_batch_arguments
from specvlm_sglang.tools.bench.arguments import add_arguments as add_bench_arguments
from specvlm_sglang.tools.demo.arguments import add_arguments as add_demo_arguments
from specvlm_sglang.tools.errors import ToolError
from specvlm_sglang.tools.sizing.arguments import add_arguments as add_sizing_arguments
from specvlm_sglang.tools.soak.arguments import add_arguments as add_soak_arguments
from specvlm_sglang.tools.visualize.arguments import add_arguments as add_visualize_arguments

STOPPED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``specvlm``; returns the exit status. Nothing that a command started survives it."""
    options = _parser().parse_args(arguments)
    # Background shells start programs with SIGINT ignored; a terminated one cleans up too, and so
    # does one whose terminal is closed.
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.default_int_handler)
    try:
        status: int | None = options.run(options)
        return status or 0
    except (ToolError, ValueError, OSError) as error:
        # What the project refuses (ValueError) and the system does (OSError) names itself too.
        said = Text(f"specvlm {options.command}: {error}", style="red")
        Console(stderr=True).print(said, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="specvlm", description="Speculative decoding for video LLMs in SGLang."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="say whether this machine would serve, and why not")
    doctor.add_argument(
        "--target", help="target model: to check with --draft, or to list drafts for"
    )
    doctor.add_argument("--draft", help="draft model to check with --target")
    doctor.add_argument(
        "--sglang",
        type=Path,
        metavar="PATH",
        help="compare another SGLang's source (a checkout, an unpacked wheel) with what this "
        "project relies on, and nothing else; nothing of it is imported",
    )
    add_sizing_arguments(doctor)
    doctor.set_defaults(run=_doctor, refuse=doctor.error)
    demo = commands.add_parser("demo", help="a real server answers a question about a video")
    add_demo_arguments(demo)
    demo.set_defaults(run=_demo)
    visualize = commands.add_parser("visualize", help="write a page that shows what the draft kept")
    add_visualize_arguments(visualize)
    visualize.set_defaults(run=_visualize)
    batch = commands.add_parser("batch", help="answer a question about many videos, resumable")
    add_batch_arguments(batch)
    batch.set_defaults(run=_batch)
    bench = commands.add_parser("bench", help="SPECVLM beside plain decoding, measured in one run")
    add_bench_arguments(bench)
    bench.set_defaults(run=_bench)
    soak = commands.add_parser("soak", help="a mixed load with cuts, and what is left afterwards")
    add_soak_arguments(soak)
    soak.set_defaults(run=_soak)
    return parser


# Each command is imported when it is chosen: torch takes seconds.


def _doctor(options: argparse.Namespace) -> int:
    if options.sglang is not None:
        from specvlm_sglang.tools.sglang_source import examine_source

        if not (options.target is options.draft is options.video_tokens is None):
            options.refuse("--sglang goes without --target, --draft and --video-tokens")
        return examine_source(options.sglang)
    if options.video_tokens is not None:
        from specvlm_sglang.tools.sizing.report import size_pair

        if options.target is None:
            options.refuse("--video-tokens needs --target")
        return size_pair(options, Console())
    for name in ("batch", "tp", "gpu", "gpu_memory", "accept_length"):
        if getattr(options, name) is not None:
            options.refuse(f"--{name.replace('_', '-')} needs --video-tokens")
    from specvlm_sglang.tools.doctor import examine

    if options.target is None and options.draft is not None:
        options.refuse("--draft needs --target")
    return examine(options.target, options.draft)


def _demo(options: argparse.Namespace) -> None:
    from specvlm_sglang.tools.demo.run import run

    run(options)


def _visualize(options: argparse.Namespace) -> None:
    from specvlm_sglang.tools.visualize.run import run

    run(options)


def _batch(options: argparse.Namespace) -> int:
    from specvlm_sglang.tools.batch.run import run

    return run(options)


def _bench(options: argparse.Namespace) -> int:
    from specvlm_sglang.tools.bench.run import run

    return run(options)


def _soak(options: argparse.Namespace) -> int:
    from specvlm_sglang.tools.soak.run import run

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
