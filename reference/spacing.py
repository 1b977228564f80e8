"""Even spacing of tokens over a sequence and over a video's grid: Stage II of the selection.

Integers only, so that another implementation can be compared with this one index by index.
"""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Grid = tuple[int, int, int]


def prune_spatially_uniform(candidates: npt.ArrayLike, count: int) -> IntArray:
    """Stage II: keep ``count`` evenly spaced candidates, the first and the last among them.

    Keeps ``candidates[(i * (R - 1)) // (count - 1)]`` for ``i = 0 .. count - 1``, where R is their
    number; a count of 1 keeps the first. The authors' float spacing is one index lower now and
    then; integers are exact.

    Parameters
    ----------
    candidates : int array, shape [R]
        Token indices, ascending and distinct.
    count : int
        Number of tokens to keep, in [0, R].

    Returns
    -------
    int64 array, shape [count]
        In the order of ``candidates``.

    Raises
    ------
    ValueError
        For candidates that are not 1-D, or a count out of range.
    """
    array = _checked_candidates(candidates, count)
    steps = np.arange(count, dtype=np.int64)
    return array[steps * (array.size - 1) // max(count - 1, 1)]


def grid_order(grid: Grid) -> IntArray:
    """Token indices of a video, frame after frame, each frame along a Hilbert curve.

    A stretch of the curve covers a compact patch of the frame, so tokens that are evenly spaced
    along it are spread over the frame's area. The curve fills the smallest square with a
    power-of-two side that holds the frame, from its top left to its top right corner; cells
    outside the frame are skipped.

    Parameters
    ----------
    grid : (frames, rows, columns)
        Token grid of the video, each at least 1. Token ``(f, r, c)`` has index
        ``(f * rows + r) * columns + c``.

    Returns
    -------
    int64 array, shape [frames * rows * columns]
        A permutation of the token indices.

    Raises
    ------
    ValueError
        For a grid that is not three positive integers.
    """
    frames, rows, columns = checked_grid(grid)
    area = rows * columns
    y, x = np.divmod(np.arange(area, dtype=np.int64), columns)
    side = 1 << (max(rows, columns) - 1).bit_length()
    distance = np.zeros(area, dtype=np.int64)
    half = side // 2
    while half:
        right, down = (x & half) > 0, (y & half) > 0
        # Quadrants in the order top left, bottom left, bottom right, top right.
        distance += half * half * (3 * right ^ down)
        # Turn the two upper quadrants so that the curve inside them joins its neighbours.
        mirrored = right & ~down
        x, y = np.where(mirrored, side - 1 - x, x), np.where(mirrored, side - 1 - y, y)
        x, y = np.where(down, x, y), np.where(down, y, x)
        half //= 2
    curve = np.argsort(distance)
    starts = np.arange(frames, dtype=np.int64) * area
    return (starts[:, None] + curve[None, :]).reshape(-1)


def prune_grid_uniform(candidates: npt.ArrayLike, count: int, grid: Grid) -> IntArray:
    """Stage II over frames and over each frame's area.

    Puts the candidates into :func:`grid_order`, cuts that sequence into ``count`` stretches of
    equal length and keeps the middle of each: those at ``((2 * i + 1) * R) // (2 * count)`` for
    ``i = 0 .. count - 1``, where R is their number. Frames with equally many candidates get
    equally many tokens, give or take one.

    Parameters
    ----------
    candidates : int array, shape [R]
        Token indices in the grid, distinct.
    count : int
        Number of tokens to keep, in [0, R].
    grid : (frames, rows, columns)
        Token grid of the video, each at least 1.

    Returns
    -------
    int64 array, shape [count]
        Ascending.

    Raises
    ------
    ValueError
        For candidates that are not 1-D or lie outside the grid, a count out of range, or a grid
        that is not three positive integers.
    """
    array = _checked_candidates(candidates, count)
    order = grid_order(grid)
    outside = array[(array < 0) | (array >= order.size)]
    if outside.size:
        raise ValueError(f"candidates must lie in [0, {order.size - 1}], got {outside[0]}")
    is_candidate = np.zeros(order.size, dtype=np.bool_)
    is_candidate[array] = True
    along = order[is_candidate[order]]
    steps = np.arange(count, dtype=np.int64)
    return np.sort(along[(2 * steps + 1) * along.size // max(2 * count, 1)])


def checked_grid(grid: Grid) -> Grid:
    """Return the grid as Python integers, or raise :class:`ValueError`."""
    if len(grid) != 3 or any(not isinstance(n, int | np.integer) or n < 1 for n in grid):
        raise ValueError(f"grid must be (frames, rows, columns), each at least 1, got {grid}")
    frames, rows, columns = (int(n) for n in grid)
    return frames, rows, columns


def _checked_candidates(candidates: npt.ArrayLike, count: int) -> IntArray:
    array = np.asarray(candidates, dtype=np.int64)
    if array.ndim != 1:
        raise ValueError(f"candidates must have one axis, got shape {array.shape}")
    if not 0 <= count <= array.size:
        raise ValueError(f"count must lie in [0, {array.size}], got {count}")
    return array
