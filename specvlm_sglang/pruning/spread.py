"""Tokens that rank first among their neighbours: the torch twin of ``reference.spread``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from specvlm_sglang.pruning.spacing import Grid

LAYERS = 4
SWEEPS = 12


def spread(
    worth: torch.Tensor, budget: int, grid: Grid, taken: torch.Tensor | None = None
) -> torch.Tensor:
    """Keep ``budget`` tokens, int64 ascending, layer by layer of local maxima; no host sync.

    Those of the mask ``taken``, bool ``[N]``, are kept before all others and are in no layer.

    As many sweeps as the definition allows are always made: whether a token is still open is known
    on the device alone.
    """
    n, device = worth.shape[0], worth.device
    ranked = torch.argsort(worth, descending=True, stable=True)
    rank = torch.empty_like(ranked).scatter(0, ranked, torch.arange(n, device=device)).view(grid)
    layer = torch.full_like(rank, LAYERS)
    if taken is not None:
        layer = layer.masked_fill(taken.view(grid), -1)
    closed = torch.full_like(rank, n)
    for number in range(LAYERS):
        is_open = layer == LAYERS
        for _ in range(SWEEPS):
            open_rank = torch.where(is_open, rank, closed)
            wins = is_open & (open_rank == _box(open_rank, torch.minimum))
            layer = layer.masked_fill(wins, number)
            is_open = is_open & ~_box(wins, torch.logical_or)
    order = torch.argsort((layer * n + rank).flatten())
    return order[:budget].sort().values


def _box(
    values: torch.Tensor, reduce: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Reduce over the cells within one step of each along every axis, itself included."""
    for axis, length in enumerate(values.shape):
        if length > 1:
            found = values.clone()
            front, back = found.narrow(axis, 0, length - 1), found.narrow(axis, 1, length - 1)
            front.copy_(reduce(front, values.narrow(axis, 1, length - 1)))
            back.copy_(reduce(back, values.narrow(axis, 0, length - 1)))
            values = found
    return values
