"""``sgl.video(path, num_frames)`` in SGLang frontend programs, without OpenCV.

SGLang 0.5.23's own encoding decodes the clip with OpenCV, which it does not install, and sends the
frames as one "image" that no current processor understands. Import this module in the program and
call `enable_video` before running it; a server with this plugin understands what is sent.

    import sglang as sgl
    from specvlm_sglang.frontend import enable_video

    enable_video()
"""

from __future__ import annotations

import base64
import io

import numpy as np

PREFIX = "video:"
"""What marks the frames of one video among a request's images."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encode_frames(path: str, num_frames: int) -> str:
    """Return ``num_frames`` evenly spaced frames of a clip in SGLang's own wire format.

    Parameters
    ----------
    path
        Video file.
    num_frames
        At least 1; a shorter clip repeats frames.

    Returns
    -------
    str
        ``"video:"`` and the base64 of the frames' PNG files, one after the other.

    Raises
    ------
    ValueError
        ``num_frames`` below 1, or a file that is not a readable video.
    """
    from PIL import Image

    from specvlm_sglang.host.media.reader import PyAVReader

    if num_frames < 1:
        raise ValueError(f"num_frames={num_frames} must be at least 1")
    reader = PyAVReader(path)
    indices = np.linspace(0, len(reader) - 1, num_frames).astype(int)
    files = io.BytesIO()
    for frame in reader.get_batch(indices.tolist()).asnumpy():
        Image.fromarray(frame).save(files, format="PNG")
    return PREFIX + base64.b64encode(files.getvalue()).decode()


def decode_frames(encoded: str) -> np.ndarray:
    """Return the frames of `encode_frames` (or of SGLang's own encoding).

    Returns
    -------
    numpy.ndarray
        uint8 ``[frames, height, width, 3]``.

    Raises
    ------
    ValueError
        Not that format.
    """
    from PIL import Image

    try:
        data = base64.b64decode(encoded.removeprefix(PREFIX), validate=True)
        files = [PNG_SIGNATURE + body for body in data.split(PNG_SIGNATURE)[1:]]
        frames = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
        return np.stack(frames)
    except (ValueError, OSError) as error:
        raise ValueError(f"not the frames of an sgl.video: {error}") from error


def enable_video() -> None:
    """Make ``sgl.video`` of this process work; idempotent."""
    from specvlm_sglang.host import contract

    contract.require("frontend programs")
    from sglang.lang import interpreter

    interpreter.encode_video_base64 = encode_frames
