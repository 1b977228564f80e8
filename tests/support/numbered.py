"""Video files whose frames carry their own number, so that a test reads which frame came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 64, 128
COLUMNS, ROWS = 8, 2
# The second row's last cells tell a turned or mirrored picture from an upright one.
MARK = (True, False, True, True)
BITS = COLUMNS * ROWS - len(MARK)


def draw(number: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """A picture of ``number``, below 4096: black and white cells; uint8 ``[height, width, 3]``."""
    cells = [bool(number >> bit & 1) for bit in range(BITS)] + list(MARK)
    grid = np.where(np.reshape(cells, (ROWS, COLUMNS)), 235, 20).astype(np.uint8)
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return np.repeat(grid[rows][:, columns, None], 3, axis=2)


def read(picture: NDArray[np.uint8]) -> int:
    """The number that `draw` drew.

    Raises
    ------
    AssertionError
        The picture is turned, mirrored or damaged.
    """
    height, width = picture.shape[:2]
    cells = []
    for row in range(ROWS):
        for column in range(COLUMNS):
            y, x = (2 * row + 1) * height // (2 * ROWS), (2 * column + 1) * width // (2 * COLUMNS)
            around = picture[y - height // 16 : y + height // 16 + 1, x - 2 : x + 3]
            assert around.std() < 40, f"a cell that is neither black nor white at {x}, {y}"
            cells.append(bool(around.mean() > 128))
    assert tuple(cells[BITS:]) == MARK, "the picture does not stand upright"
    return sum(1 << bit for bit, cell in enumerate(cells[:BITS]) if cell)


def read_all(pictures: NDArray[np.uint8]) -> list[int]:
    """The numbers of several pictures."""
    return [read(picture) for picture in pictures]


def write(
    path: Path,
    codec: str,
    *,
    container: str | None = None,
    frames: int = 60,
    rate: int | Fraction = 25,
    stamps: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    height: int = HEIGHT,
    width: int = WIDTH,
    prepare: Any = None,
    first: int = 0,
) -> Path:
    """Write the frames ``first`` and on.

    Parameters
    ----------
    codec
        FFmpeg's name of an encoder.
    container
        FFmpeg's name of a format; from the file's name where None.
    stamps, time_base
        Presentation time stamps of the frames, and their unit in seconds; by ``rate`` where None.
    prepare
        Called with the stream before the first frame.
    """
    with av.open(str(path), "w", format=container, options=dict(container_options or {})) as file:
        stream = file.add_stream(codec, rate=rate, options=dict(options or {}))
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.thread_count = 1
        if time_base is not None:
            stream.codec_context.time_base = time_base
        if prepare is not None:
            prepare(stream)
        for index in range(frames):
            picture = av.VideoFrame.from_ndarray(draw(first + index, height, width), format="rgb24")
            picture = picture.reformat(format=pix_fmt)
            if stamps is not None:
                assert time_base is not None
                picture.pts, picture.time_base = stamps[index], time_base
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return path
