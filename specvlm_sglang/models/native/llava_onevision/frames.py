"""Which frames of a video file the model sees.

SGLang's rule for the Qwen-VL models (``smart_nframes``) without their pairing of frames: so many
per second within limits, evenly from the first frame to the last. The upper limit is what
LLaVA-OneVision was trained with.
"""

from __future__ import annotations

import numpy as np

from specvlm_sglang.host.video_requests.options import OF_PIXELS, VideoOptions

DEFAULTS = VideoOptions(fps=2.0, min_frames=4, max_frames=32)


def check_no_pixels(options: VideoOptions, where: str = "") -> None:
    """Refuse options of a frame's size; ``where`` begins the message.

    Raises
    ------
    ValueError
        One is set; the message names it.
    """
    for name in OF_PIXELS:
        value = getattr(options, name)
        if value is not None:
            raise ValueError(
                f"{where}{name}={value} does not work with LLaVA-OneVision: it resizes every "
                "frame to the vision tower's square"
            )


def frame_indices(options: VideoOptions, total: int, rate: float) -> list[int]:
    """Choose frames.

    Parameters
    ----------
    options
        Merged over `DEFAULTS`.
    total
        Frames in the file, at least 1.
    rate
        Its frames per second; 0 where unknown, which gives `max_frames`.

    Returns
    -------
    list of int
        Ascending, each at most once, first and last frame included where there are two.
    """
    least, most = options.min_frames or 1, options.max_frames or total
    if options.nframes is not None:
        wanted = options.nframes
    elif rate > 0 and options.fps is not None:
        wanted = min(max(int(total / rate * options.fps), least), most)
    else:
        wanted = most
    spaced = np.linspace(0, total - 1, num=min(wanted, total), dtype=np.int64)
    return [int(index) for index in np.unique(spaced)]
