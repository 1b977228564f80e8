"""What vision features say about video tokens: how alike they are, and how much they change.

Everything that a policy ranks by is an integer or a multiple of a power of two, so that rounding
errors of another summation order do not change which tokens are kept.
"""

import numpy as np
import numpy.typing as npt

from reference.spacing import Grid, checked_grid

FloatArray = npt.NDArray[np.float32]

SCALE = 1023
"""Length of a quantised unit vector: products of two of them are exact in float32 sums."""
STEPS = 2**20
"""Steps of :func:`temporal_change` in one unit of cosine distance."""


def checked_features(features: npt.ArrayLike, n: int) -> FloatArray:
    """Return features as float32 ``[n, d]``.

    Raises
    ------
    ValueError
        For other than two axes, another number of tokens, or values that are not finite.
    """
    with np.errstate(over="ignore"):
        array = np.asarray(features).astype(np.float32)
    if array.ndim != 2 or array.shape[0] != n or array.shape[1] < 1:
        raise ValueError(f"features must have shape ({n}, d), d at least 1, got {array.shape}")
    finite = np.isfinite(array)
    if not finite.all():
        raise ValueError(f"features must be finite, got {array[~finite][0]}")
    return array


def quantised_directions(features: FloatArray) -> FloatArray:
    """Unit vectors times `SCALE`, each component rounded to an integer (half to even).

    Parameters
    ----------
    features : float32 array, shape [N, d]
        Finite. A zero vector stays one.

    Returns
    -------
    float32 array, shape [N, d]
        Integers. By Cauchy and Schwarz no partial sum of a product of two rows exceeds
        ``(SCALE + sqrt(d) / 2) ** 2``, which is below ``2 ** 24`` for every d up to 37 million.
    """
    exact = features.astype(np.float64)
    length = np.sqrt((exact * exact).sum(axis=1, keepdims=True))
    unit = exact / np.where(length > 0, length, 1)
    found: FloatArray = np.rint(unit * SCALE).astype(np.float32)
    return found


def similarity(first: FloatArray, second: FloatArray) -> npt.NDArray[np.int32]:
    """Cosine similarity of quantised directions, as int32 ``[n, m]``.

    In steps of ``256 / SCALE ** 2``, rounded down: equal directions have about 4,088.
    """
    return (first @ second.T).astype(np.int32) >> 8


def temporal_change(features: FloatArray, grid: Grid) -> FloatArray:
    """Cosine distance of each token to the one at its place one frame earlier.

    Parameters
    ----------
    features : float32 array, shape [N, d]
        In the order of the grid. A zero vector has cosine 0 to everything.
    grid : (frames, rows, columns)
        Product N. Where there is one frame, nothing changes.

    Returns
    -------
    float32 array, shape [N]
        In [0, 2], rounded to a multiple of ``1 / STEPS``. The first frame has the second one's.
    """
    frames = checked_grid(grid)[0]
    exact = features.astype(np.float64).reshape(frames, -1, features.shape[-1])
    if frames == 1:
        return np.zeros(len(features), np.float32)
    length = np.sqrt((exact * exact).sum(axis=-1))
    lengths = length[1:] * length[:-1]
    dot = (exact[1:] * exact[:-1]).sum(axis=-1)
    cosine = np.where(lengths > 0, dot / np.where(lengths > 0, lengths, 1), 0)
    distance = np.clip(np.rint((1 - cosine) * STEPS), 0, 2 * STEPS) / STEPS
    found: FloatArray = np.concatenate([distance[:1], distance]).reshape(-1).astype(np.float32)
    return found
