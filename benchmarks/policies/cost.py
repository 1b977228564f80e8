"""What a selection costs on a CPU, at three lengths."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.policies.measure import MERGE, TOP_P
from specvlm_sglang.pruning.merging import merge
from specvlm_sglang.pruning.registry import shipped_policies
from specvlm_sglang.pruning.selection import select_video_tokens

GRIDS = {"1k": (4, 16, 16), "25k": (128, 14, 14), "64k": (256, 16, 16)}
"""1,024, 25,088 and 65,536 tokens."""
WIDTH = 512
RETENTION = 0.1
REPEATS = 2
_LONG = 5.0
"""A selection that takes so many seconds is measured once."""


def measure(policies: Sequence[str]) -> dict[str, Any]:
    """CPU milliseconds of each policy that is served, by length; the plugin's own selection.

    Parameters
    ----------
    policies : sequence of str
        Names; those that only the reference has, and merged ones, are left out. What merging adds
        to any of them is measured once, by the name `MERGE`.
    """
    known = [*(name for name in policies if name in shipped_policies()), MERGE]
    found: dict[str, dict[str, float]] = {name: {} for name in known}
    for length, grid in GRIDS.items():
        scores, features = _drawn(grid)
        for name in known:
            found[name][length] = round(_milliseconds(name, scores, features, grid), 3)
    return {
        "machine": platform.processor() or platform.machine(),
        "width": WIDTH,
        "retention": RETENTION,
        "repeats": REPEATS,
        "lengths": {length: int(np.prod(grid)) for length, grid in GRIDS.items()},
        "milliseconds": found,
    }


def _drawn(grid: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Heavy-tailed scores, and features of a still ground with noise and a tenth that changes."""
    rng = np.random.default_rng(0)
    n = int(np.prod(grid))
    ground = rng.normal(size=(grid[1] * grid[2], WIDTH)).astype(np.float32)
    features = np.tile(ground, (grid[0], 1))
    features += 0.1 * rng.standard_normal(features.shape, np.float32)
    moving = rng.choice(n, n // 10, replace=False)
    features[moving] += rng.standard_normal((len(moving), WIDTH), np.float32)
    scores = rng.lognormal(sigma=2.0, size=n)
    return torch.from_numpy((scores / scores.sum()).astype(np.float32)), torch.from_numpy(features)


def _milliseconds(
    name: str, scores: torch.Tensor, features: torch.Tensor, grid: tuple[int, int, int]
) -> float:
    def select(policy: str) -> torch.Tensor:
        return select_video_tokens(
            scores,
            retention=RETENTION,
            top_p=TOP_P,
            policy=policy,
            grid=grid,
            features=features,
        ).indices

    kept = select("uniform")
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < _LONG:
        started = time.process_time()
        if name == MERGE:
            merge(features, kept)
        else:
            select(name)
        times.append(time.process_time() - started)
    return 1000 * min(times)
