"""How alike tokens are and how much they change: the torch twin of ``reference.features``."""

from __future__ import annotations

import torch

from specvlm_sglang.pruning.spacing import Grid

SCALE = 1023
STEPS = 2**20
_CPU_BLOCK, _BLOCK = 1 << 20, 1 << 22
"""Numbers held in float64 at once: what a CPU's cache has room for, and few launches elsewhere."""


def quantised_directions(features: torch.Tensor) -> torch.Tensor:
    """Unit vectors times `SCALE`, rounded to integers, float32 ``[N, d]``.

    Products of two of them are exact in float32, whatever the order of the sum: also in TF32, which
    holds the eleven bits of each factor.
    """
    n, width = features.shape
    rows = max(1, _block(features) // width)
    found = torch.empty((n, width), dtype=torch.float32, device=features.device)
    for start in range(0, n, rows):
        exact = features[start : start + rows].double()
        length = (exact * exact).sum(1, keepdim=True).sqrt()
        unit = exact / torch.where(length > 0, length, torch.ones_like(length))
        found[start : start + rows] = (unit * SCALE).round()
    return found


def similarity(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of quantised directions, int32 ``[n, m]``; about 4,088 where they agree."""
    return (first @ second.T).int() >> 8


def temporal_change(features: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Cosine distance of each token to the one at its place one frame earlier, float32 ``[N]``.

    In [0, 2], a multiple of ``1 / STEPS``. The first frame has the second one's.
    """
    frames, area, width = grid[0], grid[1] * grid[2], features.shape[1]
    device = features.device
    if frames == 1:
        return torch.zeros(area, dtype=torch.float32, device=device)
    tokens = features.view(frames, area, width)
    found = torch.empty((frames, area), dtype=torch.float32, device=device)
    step = max(1, _block(features) // (area * width))
    for start in range(1, frames, step):
        stop = min(frames, start + step)
        # One frame more than is written: the one before.
        exact = tokens[start - 1 : stop].double()
        length = torch.linalg.vecdot(exact, exact).sqrt()
        lengths = length[1:] * length[:-1]
        dot = torch.linalg.vecdot(exact[1:], exact[:-1])
        cosine = torch.where(lengths > 0, dot / lengths, torch.zeros_like(dot))
        found[start:stop] = ((1 - cosine) * STEPS).round().clamp(0, 2 * STEPS) / STEPS
    found[0] = found[1]
    return found.flatten()


def _block(features: torch.Tensor) -> int:
    return _CPU_BLOCK if features.device.type == "cpu" else _BLOCK
