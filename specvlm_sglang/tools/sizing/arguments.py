"""Flags of ``specvlm doctor`` that size a pair."""

from __future__ import annotations

import argparse

from specvlm_sglang.config import DEFAULT_NUM_STEPS
from specvlm_sglang.tools.sizing.cost import HARDWARE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what sizes a pair to ``specvlm doctor``."""
    group = parser.add_argument_group(
        "sizing",
        "With --video-tokens the pair's memory and expected speedup are computed, for published "
        "names without their weights, and this machine is not looked at. Without --draft the "
        "target drafts for itself (--specvlm-draft self), and is told where that can pay.",
    )
    group.add_argument("--video-tokens", type=int, metavar="N", help="video tokens of a request")
    group.add_argument(
        "--batch", type=int, help="requests at once (default: 1, and the largest that fits)"
    )
    group.add_argument("--tp", type=int, help="GPUs that share the pair (default: 1)")
    group.add_argument("--gpu", choices=sorted(HARDWARE), help="its rates (default: H100)")
    group.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="memory of one GPU (default: that GPU's)"
    )
    group.add_argument(
        "--accept-length",
        type=float,
        metavar="TOKENS",
        help=f"tokens of a verify round, bonus included, at most {DEFAULT_NUM_STEPS + 1}: an "
        "assumption (default: 3)",
    )
