"""Small real media files: clips of moving shapes, images, and files that are broken on purpose."""

from __future__ import annotations

import base64
import mimetypes
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Frames = NDArray[np.uint8]
"""RGB frames, shape (frames, height, width, 3)."""


def draw(*, seed: int, frames: int, height: int, width: int) -> Frames:
    """Coloured rectangles and discs that move over a plain background.

    Colours, sizes, start positions and speeds come from ``seed``.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    video = np.empty((frames, height, width, 3), np.uint8)
    video[:] = rng.integers(0, 256, 3)
    for shape in range(3):
        colour = rng.integers(0, 256, 3)
        radius = rng.uniform(0.15, 0.35) * min(height, width)
        centre = rng.uniform(0, 1, 2) * (height, width)
        step = rng.uniform(-0.15, 0.15, 2) * (height, width)
        for index in range(frames):
            y, x = (centre + index * step) % (height, width)
            if shape % 2:
                inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
            else:
                inside = np.maximum(abs(rows - y), abs(columns - x)) < radius
            video[index][inside] = colour
    return video


def write_clip(
    path: Path,
    *,
    seed: int = 0,
    frames: int = 12,
    fps: int = 6,
    height: int = 96,
    width: int = 128,
) -> Path:
    """Write an H.264 mp4 of moving shapes.

    Parameters
    ----------
    path : Path
        File to write.
    seed : int
        Of colours and movement.
    frames, fps : int
        Length and frame rate.
    height, width : int
        In pixels; even, as H.264 with 4:2:0 colour wants.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ValueError
        If ``height`` or ``width`` is odd, or ``frames`` is below 1.
    """
    if height % 2 or width % 2:
        raise ValueError(f"height and width must be even, got {height} x {width}")
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        for image in draw(seed=seed, frames=frames, height=height, width=width):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_image(path: Path, *, seed: int = 0, height: int = 96, width: int = 128) -> Path:
    """Write one picture of coloured shapes, in the format that the name's ending says."""
    Image.fromarray(draw(seed=seed, frames=1, height=height, width=width)[0]).save(path)
    return path


def data_url(path: Path) -> str:
    """The file's content as a ``data:`` URL; its media type comes from the name."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def write_truncated_clip(path: Path) -> Path:
    """The first half of an mp4: the index at its end is missing."""
    content = write_clip(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def write_empty_file(path: Path) -> Path:
    """A file of zero bytes."""
    path.write_bytes(b"")
    return path


def write_text_file(path: Path) -> Path:
    """Plain text, whatever the name says."""
    path.write_text("This is not a video.\n" * 20)
    return path


def write_sound_only(path: Path) -> Path:
    """A well-formed mp4 whose only track is one second of silence."""
    rate, block = 16000, 1024
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=rate)
        for start in range(0, rate, block):
            silence = np.zeros((1, block), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_clip_without_frames(path: Path) -> Path:
    """A well-formed mp4 with a video track that holds no frame."""
    # Only a fragmented file announces its tracks before, and here without, any packet.
    fragmented = {"movflags": "empty_moov+frag_keyframe"}
    with av.open(str(path), "w", format="mp4", options=fragmented) as container:
        stream = container.add_stream("libx264", rate=6)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        container.start_encoding()
    return path


def write_one_frame_clip(path: Path) -> Path:
    """A good mp4 of a single frame, fewer than one temporal patch of Qwen2.5-VL."""
    return write_clip(path, frames=1)
