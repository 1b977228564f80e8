"""Selectors that look at how alike tokens are: ``cover`` and ``max-min``.

``cover`` is facility location, the greedy way: SCOPE (NeurIPS 2025) weights each gain by a token's
attention, FLoC (arXiv 2511.00141) does not. ``max-min`` is DivPrune (CVPR 2025).
"""

import numpy as np
import numpy.typing as npt

from reference.features import quantised_directions, similarity
from reference.spacing import Grid, IntArray, checked_grid

FloatArray = npt.NDArray[np.float32]

CHUNK_TOKENS = 2048
"""As many whole frames are covered together as have no more tokens than this, at least one."""


def shares(total: int, sizes: list[int]) -> list[int]:
    """Divide ``total`` in proportion to ``sizes`` by largest remainder, ties to the earlier one.

    Raises
    ------
    ValueError
        ``total`` is negative or more than the sizes' sum.
    """
    whole = sum(sizes)
    if not 0 <= total <= whole:
        raise ValueError(f"total must lie in [0, {whole}], got {total}")
    found = [total * size // max(whole, 1) for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(total * sizes[i] % max(whole, 1)), i))
    for index in by_remainder[: total - sum(found)]:
        found[index] += 1
    return found


def cover(scores: FloatArray, features: FloatArray, budget: int, grid: Grid) -> IntArray:
    """Keep the tokens that make every token resemble a kept one, weighted by score.

    Chunk by chunk of whole frames (`CHUNK_TOKENS`), each with its share of the budget
    (:func:`shares`). Within one, with ``S`` the similarities (negative ones are 0) and ``c`` the
    highest similarity of each token to a kept one (0 at first), the next token is the one with the
    highest ``scores[j] * sum_i max(0, S[i, j] - c[i])``, ties to the lower index. The sum is an
    integer and the product one float64 multiplication.

    Parameters
    ----------
    scores : float32 array, shape [N]
        At least 0.
    features : float32 array, shape [N, d]
    budget : int
        Tokens to keep, at most N.
    grid : (frames, rows, columns)
        Product N.

    Returns
    -------
    int64 array, shape [budget]
        Ascending.
    """
    counts = shares(budget, chunk_sizes(grid))
    orders = cover_orders(scores, features, counts, grid)
    return np.sort(np.concatenate(orders))


def chunk_sizes(grid: Grid) -> list[int]:
    """Tokens of each chunk, in order."""
    frames, rows, columns = checked_grid(grid)
    size = max(1, CHUNK_TOKENS // (rows * columns)) * rows * columns
    n = frames * rows * columns
    return [min(size, n - start) for start in range(0, n, size)]


def cover_orders(
    scores: FloatArray, features: FloatArray, counts: list[int], grid: Grid
) -> list[IntArray]:
    """Tokens of each chunk in the order in which :func:`cover` takes them, so many of each."""
    directions, start, orders = quantised_directions(features), 0, []
    for size, count in zip(chunk_sizes(grid), counts, strict=True):
        inside = slice(start, start + size)
        orders.append(start + _cover_one(scores[inside], directions[inside], count))
        start += size
    return orders


def _cover_one(scores: FloatArray, directions: FloatArray, budget: int) -> IntArray:
    alike = np.maximum(similarity(directions, directions), 0)
    covered = np.zeros(len(scores), np.int32)
    gains = alike.sum(axis=0, dtype=np.int64)
    free, kept = np.ones(len(scores), np.bool_), np.empty(budget, np.int64)
    for step in range(budget):
        weighted = gains.astype(np.float64) * scores.astype(np.float64)
        best = int(np.argmax(np.where(free, weighted, -1)))
        kept[step], free[best] = best, False
        # Only tokens that are covered better than before change anybody's gain.
        better = np.flatnonzero(alike[:, best] > covered)
        before = np.maximum(alike[better] - covered[better, None], 0)
        covered[better] = alike[better, best]
        after = np.maximum(alike[better] - covered[better, None], 0)
        gains -= (before - after).sum(axis=0, dtype=np.int64)
    return kept


def max_min(features: FloatArray, budget: int) -> IntArray:
    """Keep the first tokens of :func:`max_min_order`: int64 [budget], ascending."""
    return np.sort(max_min_order(features, budget))


def max_min_order(features: FloatArray, budget: int) -> IntArray:
    """Tokens that are far from each other (DivPrune), in the order in which they are taken.

    The first is the token whose most similar other token is the least similar; then always the one
    whose highest similarity to a kept token is the lowest. Ties to the lower index.

    Parameters
    ----------
    features : float32 array, shape [N, d]
    budget : int
        Tokens to keep, at most N.

    Returns
    -------
    int64 array, shape [budget]
    """
    directions = quantised_directions(features)
    n = len(directions)
    kept = np.empty(budget, np.int64)
    nearest = np.array([_nearest_other(directions, index) for index in range(n)], np.int32)
    closed = np.iinfo(np.int32).max
    for step in range(budget):
        kept[step] = best = int(np.argmin(nearest))
        to_best = similarity(directions, directions[best : best + 1])[:, 0]
        nearest = to_best if step == 0 else np.maximum(nearest, to_best).astype(np.int32)
        nearest[kept[: step + 1]] = closed
    return kept


def _nearest_other(directions: FloatArray, index: int) -> int:
    alike = similarity(directions, directions[index : index + 1])[:, 0]
    alike[index] = np.iinfo(np.int32).min
    return int(alike.max())
