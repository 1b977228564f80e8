"""V-CAST's rule: frames share the budget by how sharply the video turns at them."""

import numpy as np
import numpy.typing as npt

from reference.spacing import Grid, IntArray, checked_grid

TEMPERATURE = 0.7
_TINY = 1e-6


def most_unusual_tokens(features: npt.NDArray[np.float32], budget: int, grid: Grid) -> IntArray:
    """Keep the tokens that are least like their frame's mean, more of them where frames turn.

    The path of the frames' unit mean features turns at frame t by 1 minus the cosine of its steps
    to and from t (1 at both ends). The budget is shared by the softmax of that at `TEMPERATURE`, by
    largest remainder, never more than a frame has. A token is worth 1 minus its cosine to the
    frame's mean, plus its norm from 0 (the frame's least) to 1; ties to the lower index.

    Parameters
    ----------
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
    frames = checked_grid(grid)[0]
    tokens = features.astype(np.float64).reshape(frames, -1, features.shape[-1])
    means = unit(tokens.mean(axis=1))
    turns = np.ones(frames)
    if frames > 2:
        steps = np.diff(means, axis=0)
        lengths = np.linalg.norm(steps, axis=1)
        products = np.maximum(lengths[1:] * lengths[:-1], _TINY)
        turns[1:-1] = 1 - (steps[1:] * steps[:-1]).sum(axis=1) / products
    weights = np.exp((turns - turns.max()) / TEMPERATURE)
    area = tokens.shape[1]
    counts = apportioned(weights / weights.sum() * budget, budget, area)
    norms = np.linalg.norm(tokens, axis=-1)
    norms -= norms.min(axis=1, keepdims=True)
    worth = 1 - (unit(tokens) * means[:, None]).sum(axis=-1)
    worth += norms / (norms.max(axis=1, keepdims=True) + _TINY)
    order = np.argsort(-worth, axis=1, kind="stable")
    kept = [area * t + order[t, : counts[t]] for t in range(frames)]
    return np.sort(np.concatenate(kept))


def apportioned(wanted: npt.NDArray[np.float64], total: int, limit: int) -> list[int]:
    """Round to integers of this total, none above the limit, by largest remainder."""
    counts = np.minimum(np.floor(wanted).astype(np.int64), limit)
    while counts.sum() < total:
        remainder = np.where(counts < limit, wanted - counts, -np.inf)
        counts[int(np.argmax(remainder))] += 1
    found: list[int] = counts.tolist()
    return found


def unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scale the last axis to length 1; what is all zero stays so."""
    found: npt.NDArray[np.float64] = vectors / np.maximum(
        np.linalg.norm(vectors, axis=-1, keepdims=True), _TINY
    )
    return found
