"""The ``spread`` selector: the best tokens, with distance between them in space and time.

Top-K of an attention map takes neighbours that show the draft the same thing twice. Here a token
that is kept closes the box of its neighbours for the rest of a layer; what a layer leaves is the
next layer's. VScan and EarlyTom cap tokens within windows; this needs no windows.
"""

import numpy as np
import numpy.typing as npt

from reference.spacing import Grid, IntArray, checked_grid

LAYERS = 4
"""Layers that are looked for; tokens in none of them follow in the order of their scores."""
SWEEPS = 12
"""Sweeps of a layer; tokens that they leave open go to the next layer."""


def spread(
    scores: npt.NDArray[np.float32], budget: int, grid: Grid, taken: IntArray | None = None
) -> IntArray:
    """Keep the tokens that rank first within the 3 x 3 x 3 box around them, layer by layer.

    All tokens that no layer has are open at a layer's start. In a sweep every open token wins whose
    rank is the lowest among the open tokens of its box (cut at the grid's border); winners join
    the layer and close their boxes. Sweeps go on until no token is open, at most `SWEEPS` times:
    the result is that of walking down the ranks and skipping neighbours of what was taken.

    Parameters
    ----------
    scores : float32 array, shape [N]
        Ranked in descending order, ties by lower index.
    budget : int
        Tokens to keep, at most N.
    grid : (frames, rows, columns)
        Product N.
    taken : int64 array, optional
        At most ``budget`` tokens that are kept before all others. They are in no layer and close
        nobody's box.

    Returns
    -------
    int64 array, shape [budget]
        Ascending: first layers first, within a layer by rank.
    """
    sides = checked_grid(grid)
    n = scores.size
    rank = np.empty(n, np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(n)
    rank = rank.reshape(sides)
    layer = np.full(n, LAYERS, np.int64)
    layer[[] if taken is None else taken] = -1
    layer = layer.reshape(sides)
    for number in range(LAYERS):
        is_open = layer == LAYERS
        for _ in range(SWEEPS):
            open_rank = np.where(is_open, rank, n)
            wins = is_open & (open_rank == _box_minimum(open_rank))
            layer[wins] = number
            is_open &= _box_minimum(np.where(wins, 0, 1)) > 0
    order = np.argsort((layer * n + rank).reshape(-1), kind="stable")
    return np.sort(order[:budget])


def _box_minimum(values: IntArray) -> IntArray:
    """Lowest value within one step of each cell along every axis, the cell itself included."""
    for axis in range(values.ndim):
        cells = np.arange(values.shape[axis])
        ahead, behind = (np.take(values, cells + step, axis, mode="clip") for step in (1, -1))
        values = np.minimum(values, np.minimum(ahead, behind))
    return values
