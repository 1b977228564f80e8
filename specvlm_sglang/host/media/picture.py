"""From a decoded frame to RGB, and how much memory that may take.

The pixels are FFmpeg's own conversion to 8 bits of red, green and blue, by the colour matrix and
range that the file states (BT.601, limited range, where it states none). Nothing else is done:
interlaced pictures keep both fields, HDR is not tone mapped, pixels stay square.
"""

from __future__ import annotations

import os
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation

from specvlm_sglang.host.media import orientation
from specvlm_sglang.host.media.orientation import Orientation

MAX_DECODED_BYTES_VARIABLE = "SPECVLM_MAX_DECODED_VIDEO_BYTES"
DEFAULT_MAX_DECODED_BYTES = 4 << 30
_UNSPECIFIED = 2


def check_size(frames: int, height: int, width: int) -> None:
    """Refuse frames that would take more memory than allowed.

    Raises
    ------
    ValueError
        ``frames`` RGB pictures of this size exceed ``SPECVLM_MAX_DECODED_VIDEO_BYTES``.
    """
    limit = max_decoded_bytes()
    size = frames * height * width * 3
    if size > limit:
        what = "1 frame" if frames == 1 else f"{frames} frames"
        raise ValueError(
            f"{what} of {width} x {height} pixels: {size} bytes; the limit is {limit} "
            f"({MAX_DECODED_BYTES_VARIABLE})"
        )


def max_decoded_bytes() -> int:
    """The limit in force."""
    return int(os.environ.get(MAX_DECODED_BYTES_VARIABLE, DEFAULT_MAX_DECODED_BYTES))


def to_rgb(frame: Any, stored: tuple[int, int], turn: Orientation) -> npt.NDArray[np.uint8]:
    """Convert one frame.

    Parameters
    ----------
    frame
        As PyAV decodes it.
    stored
        Height and width of the video's first frame; one of another size is scaled to it.
    turn
        How the video's first frame is to be turned.

    Returns
    -------
    numpy.ndarray
        uint8 ``[height, width, 3]``, turned as the file says.
    """
    check_size(1, frame.height, frame.width)
    own = orientation.of_frame(frame)
    # A telephone that was turned while it recorded changes both; the shown size stays one.
    height, width = stored if own.transposed == turn.transposed else stored[::-1]
    if (frame.height, frame.width) != (height, width):
        scaled = {"height": height, "width": width, "interpolation": Interpolation.BICUBIC}
    else:
        scaled = {}
    try:
        rgb = frame.reformat(format="rgb24", **scaled)
    except (av.error.FFmpegError, NotImplementedError, OSError):
        # A colour matrix that FFmpeg cannot convert by, or does not know.
        frame.colorspace = _UNSPECIFIED
        rgb = frame.reformat(format="rgb24", **scaled)
    return own.apply(rgb.to_ndarray())
