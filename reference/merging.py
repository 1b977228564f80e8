"""Dropped tokens live on in the kept ones: no training, and not one token more."""

import numpy as np
import numpy.typing as npt

from reference.features import checked_features, quantised_directions, similarity
from reference.spacing import IntArray

OWN = 0.6
"""Share of a merged token that stays its own."""
_BLOCK = 4096


def nearest_kept(features: npt.NDArray[np.float32], kept: IntArray) -> IntArray:
    """Which kept token each token of a video is most like, ties to the lower one.

    Parameters
    ----------
    features : float32 array, shape [N, d]
    kept : int64 array, shape [K]
        Ascending.

    Returns
    -------
    int64 array, shape [N]
        Places in ``kept``. What a kept token is nearest to means nothing.
    """
    directions = quantised_directions(features)
    blocks = [
        similarity(directions[start : start + _BLOCK], directions[kept]).argmax(axis=1)
        for start in range(0, len(features), _BLOCK)
    ]
    return np.concatenate(blocks)


def merge(features: npt.ArrayLike, kept: IntArray) -> npt.NDArray[np.float32]:
    """Mix into each kept token the mean of the dropped tokens that are most like it.

    Parameters
    ----------
    features : float array, shape [N, d]
        Of one video's tokens; finite.
    kept : int64 array, shape [K]
        Ascending and distinct.

    Returns
    -------
    float32 array, shape [K, d]
        ``OWN * own + (1 - OWN) * mean``; a token to which no dropped one is nearest stays as it is.
    """
    vectors = checked_features(features, len(np.asarray(features)))
    if not kept.size:
        return vectors[kept]
    dropped = np.ones(len(vectors), np.bool_)
    dropped[kept] = False
    place = nearest_kept(vectors, kept)[dropped]
    exact = vectors.astype(np.float64)
    sums = np.zeros((kept.size, vectors.shape[1]))
    np.add.at(sums, place, exact[dropped])
    counts = np.bincount(place, minlength=kept.size)[:, None]
    own = exact[kept]
    merged = OWN * own + (1 - OWN) * sums / np.maximum(counts, 1)
    found: npt.NDArray[np.float32] = np.where(counts > 0, merged, own).astype(np.float32)
    return found
