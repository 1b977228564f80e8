"""The same pixels as a video file and as a list of pictures."""

from __future__ import annotations

from pathlib import Path

import av
from PIL import Image

from tests.support.clips import Frames


def write_lossless(path: Path, frames: Frames, *, fps: int) -> Path:
    """Write a file that decodes to exactly these frames (FFV1 in Matroska); returns ``path``."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_pictures(folder: Path, frames: Frames) -> list[str]:
    """Write each frame as a PNG file; returns their paths in order."""
    folder.mkdir()
    paths = [folder / f"{index}.png" for index in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(frame).save(path)
    return [str(path) for path in paths]
