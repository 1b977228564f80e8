"""Pictures as they are shown: the display matrix of a frame, applied.

A phone stores its sensor's picture and says how to turn it. The matrix maps a stored place to a
shown one, ``x' = a x + c y`` and ``y' = b x + d y`` with y downwards (FFmpeg's
``libavutil/display.h``).
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type

_MATRIX = struct.Struct("=9i")


class Orientation(NamedTuple):
    """A turn by right angles: transpose first, then mirror."""

    transposed: bool = False
    mirrored_rows: bool = False
    mirrored_columns: bool = False

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """The shown height and width of a stored picture."""
        return (width, height) if self.transposed else (height, width)

    def apply(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Turn a picture ``[height, width, 3]``; the same array where nothing is to be done."""
        if self == UPRIGHT:
            return picture
        if self.transposed:
            picture = picture.transpose(1, 0, 2)
        if self.mirrored_rows:
            picture = picture[::-1]
        if self.mirrored_columns:
            picture = picture[:, ::-1]
        return np.ascontiguousarray(picture)


UPRIGHT = Orientation()


def of_matrix(a: int, b: int, c: int, d: int) -> Orientation:
    """The nearest turn by right angles; `UPRIGHT` for a matrix of zeros."""
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, mirrored_rows=b < 0, mirrored_columns=c < 0)
    return Orientation(False, mirrored_rows=d < 0, mirrored_columns=a < 0)


def of_frame(frame: Any) -> Orientation:
    """What a decoded frame's side data say; `UPRIGHT` where they say nothing."""
    for entry in frame.side_data:
        if entry.type == Type.DISPLAYMATRIX:
            a, b, _, c, d, *_ = _MATRIX.unpack(bytes(entry)[: _MATRIX.size])
            return of_matrix(a, b, c, d)
    return UPRIGHT
