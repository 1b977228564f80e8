"""VidCom2's rule (EMNLP 2025): frames unlike the video get more tokens, tokens unlike both stay."""

import numpy as np
import numpy.typing as npt

from reference.curvature import apportioned, unit
from reference.spacing import Grid, IntArray, checked_grid

TEMPERATURE = 0.01
WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)


def least_typical_tokens(features: npt.NDArray[np.float32], budget: int, grid: Grid) -> IntArray:
    """Keep the tokens that are least like the video's mean and their frame's.

    Of the features, the half of the channels with the least variance counts, each token scaled to
    length 1. A token is typical by ``sum over a of exp(-distance ** 2 / (2 a))`` to the video's
    mean, the same to its frame's mean, ``a`` being `WIDTHS`. A frame gets
    ``(1 + p - mean(p)) * budget / frames`` tokens, p the softmax at `TEMPERATURE` of how little
    typical of the video its tokens are on average. The authors round each frame's share and keep
    at least one; here the shares are rounded by largest remainder, so that exactly the budget is
    kept.

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
        Ascending; ties to the lower index.
    """
    frames = checked_grid(grid)[0]
    wide = features.astype(np.float64)
    channels = max(1, features.shape[1] // 2)
    steady = np.argsort(wide.var(axis=0), kind="stable")[:channels]
    tokens = unit(wide[:, np.sort(steady)]).reshape(frames, len(wide) // frames, -1)
    of_video = _likeness(tokens, tokens.mean(axis=(0, 1), keepdims=True))
    of_frame = _likeness(tokens, tokens.mean(axis=1, keepdims=True))
    rare = -of_video.mean(axis=1)
    shares = np.exp((rare - rare.max()) / TEMPERATURE)
    shares /= shares.sum()
    area = tokens.shape[1]
    counts = apportioned((1 + shares - shares.mean()) * budget / frames, budget, area)
    order = np.argsort(of_video + of_frame, axis=1, kind="stable")
    return np.sort(np.concatenate([area * t + order[t, : counts[t]] for t in range(frames)]))


def _likeness(
    tokens: npt.NDArray[np.float64], center: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    distances = ((tokens - center) ** 2).sum(axis=-1)
    found: npt.NDArray[np.float64] = sum(
        (np.exp(-distances / (2 * width)) for width in WIDTHS), np.zeros_like(distances)
    )
    return found
