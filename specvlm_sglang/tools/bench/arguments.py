"""The flags of ``specvlm bench``; importable without torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from specvlm_sglang.tools.bench.configurations import MAIN, REGISTRY
from specvlm_sglang.tools.bench.profiles import PROFILES
from specvlm_sglang.tools.bench.workloads import WORKLOADS, Workload


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the benchmark."""
    add = parser.add_argument
    add(
        "--profile",
        action=_Profile,
        choices=PROFILES,
        help="flags of a named run: short, or deciding; flags after it go before its own",
    )
    add(
        "--workloads",
        nargs="+",
        type=_workload,
        default=list(WORKLOADS.values()),
        metavar="NAME",
        help="; ".join(f"{w.name}: {w.about}" for w in WORKLOADS.values()),
    )
    add(
        "--configurations",
        nargs="+",
        metavar="NAME",
        help="instead of each workload's own: plain, ngram, unpruned[-tree], "
        "POLICY-RETENTION[-pTOP_P][-tree|-self]",
    )
    add("--rounds", type=int, help="instead of each workload's own number")
    add("--target", help="your target model; default: the shipped one, enlarged")
    add("--draft", help="your draft model; default: the shipped one")
    add(
        "--parameters",
        type=_count,
        default=500_000_000,
        help="size to which the shipped target is enlarged, such as 500M; 0: as it is",
    )
    add(
        "--draft-parameters",
        type=_count,
        default=0,
        help="size to which the shipped draft is enlarged; 0: as it is",
    )
    add(
        "--draft-kv-heads",
        type=int,
        help="KV heads of a layer of the enlarged draft (1 or 2), where memory is the question",
    )
    add("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16", help="of both")
    add("--steps", type=int, default=5, help="draft tokens of the chain")
    add(
        "--tree",
        nargs=3,
        type=int,
        default=(5, 2, 10),
        metavar=("DEPTH", "BRANCHES", "VERIFIED"),
        help="shape of the tree (default: 5 2 10)",
    )
    add("--top-p", type=float, default=0.2, help="share of the attention mass of Stage I")
    add("--dataset", help="videodetailcaption, mvbench, mlvu or longvideobench")
    add("--data", type=Path, help="the dataset's folder")
    add("--limit", type=int, help="at most so many samples")
    add("--launch", default="", help="further arguments of every server, such as '--tp-size 4'")
    add("--servers-at-once", type=int, help="default: as many as memory holds; on a GPU 1")
    add(
        "--bars",
        nargs="*",
        metavar="NAME",
        help=f"say which expectations these configurations meet (without a name: {MAIN})",
    )
    add("--out", type=Path, help="folder for results.json, results.md and plots")
    add(
        "--resume",
        action="store_true",
        help="go on with the run that was begun in --out, where it ended",
    )
    add(
        "--against",
        type=Path,
        metavar="DIR",
        help="compare with the run in DIR; a loss beyond noise is exit status 2",
    )
    add("--list", action=_List, help="list workloads and configurations, and end")


class _Profile(argparse.Action):
    """``--profile``: sets the flags of a named run."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        for name, value in PROFILES[values].items():
            known = [WORKLOADS[w] for w in value] if name == "workloads" else value
            setattr(namespace, name, known)


class _List(argparse.Action):
    """``--list``: prints and ends."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        for workload in WORKLOADS.values():
            chosen = ", ".join(workload.configurations)
            print(f"{workload.name:10} {workload.about}: {workload.rounds} x {chosen}")
        print("configurations: " + ", ".join(REGISTRY))
        parser.exit()


def _workload(name: str) -> Workload:
    if name not in WORKLOADS:
        known = ", ".join(WORKLOADS)
        raise argparse.ArgumentTypeError(f"{name!r} must be one of {known}")
    return WORKLOADS[name]


def _count(text: str) -> int:
    from specvlm_sglang.tools.demo.enlarge import parse_count

    try:
        return parse_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
