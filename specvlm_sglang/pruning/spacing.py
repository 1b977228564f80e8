"""Evenly spaced tokens: the torch twin of ``reference.spacing``, without a wait for the device."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from specvlm_sglang.copies import to_device

Grid = tuple[int, int, int]


def ascending(kept: torch.Tensor, budget: int) -> torch.Tensor:
    """Indices of the ``budget`` tokens in a mask ``[N]``, without counting them on the host."""
    # A stable sort brings the kept tokens to the front in order.
    return torch.argsort((~kept).to(torch.uint8), stable=True)[:budget]


def space_over(candidates: torch.Tensor, count: torch.Tensor, grid: Grid | None) -> torch.Tensor:
    """Stage II as a mask ``[N]``: ``count`` evenly spaced candidates.

    ``candidates`` is a mask ``[N]`` and ``count`` an int64 scalar on its device, so neither the
    number of candidates nor that of the kept ones is known here.
    """
    n = candidates.shape[0]
    device = candidates.device
    order = None
    if grid is not None:
        order = to_device(grid_order(grid), device)
        candidates = candidates[order]
    remaining = candidates.sum()
    steps = torch.arange(n, device=device)
    if grid is None:
        wanted = steps * (remaining - 1) // (count - 1).clamp(min=1)
    else:
        wanted = (2 * steps + 1) * remaining // (2 * count).clamp(min=1)
    # Steps beyond the count point at a spare place behind the last rank.
    wanted = torch.where(steps < count, wanted, torch.full_like(wanted, n))
    is_wanted = torch.zeros(n + 1, dtype=torch.bool, device=device).scatter(0, wanted, True)
    rank = candidates.long().cumsum(0) - 1
    kept = candidates & is_wanted[rank.clamp(min=0)]
    if order is None:
        return kept
    return torch.zeros_like(kept).scatter(0, order, kept)


def evenly(length: int, count: int, device: torch.device) -> torch.Tensor:
    """``count`` evenly spaced indices below ``length``, the first and the last among them."""
    return torch.arange(count, device=device) * (length - 1) // max(count - 1, 1)


@lru_cache(maxsize=32)
def grid_order(grid: Grid) -> torch.Tensor:
    """Token indices frame after frame, each frame along a Hilbert curve (reference.spacing)."""
    frames, rows, columns = grid
    y, x = np.divmod(np.arange(rows * columns, dtype=np.int64), columns)
    side = 1 << (max(rows, columns) - 1).bit_length()
    distance = np.zeros(rows * columns, dtype=np.int64)
    half = side // 2
    while half:
        right, down = (x & half) > 0, (y & half) > 0
        distance += half * half * (3 * right ^ down)
        # The curves of the two upper quadrants are turned to join their neighbours'.
        mirrored = right & ~down
        x, y = np.where(mirrored, side - 1 - x, x), np.where(mirrored, side - 1 - y, y)
        x, y = np.where(down, x, y), np.where(down, y, x)
        half //= 2
    starts = np.arange(frames, dtype=np.int64) * rows * columns
    return torch.from_numpy((starts[:, None] + np.argsort(distance)).reshape(-1))
