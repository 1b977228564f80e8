"""The pictures of a page: one for each frame of the token grid."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import av

_SIDE = 320
_TOTAL_BYTES = 6_000_000


@dataclass(frozen=True)
class Frame:
    """A picture.

    Attributes
    ----------
    time
        Seconds from the clip's begin.
    url
        JPEG as a data URL.
    """

    time: float
    url: str


def read_frames(video: Path, count: int) -> list[Frame]:
    """Return ``count`` pictures, each from the middle of an equal part of the clip.

    A model may put several sampled pictures into one frame of its token grid; one of them stands
    for all. The longer edge has at most 320 pixels, fewer for very many frames, so that a page
    stays within several megabytes.

    Raises
    ------
    ValueError
        A file without pictures.
    """
    try:
        with av.open(str(video)) as container:
            total = sum(1 for _ in container.decode(video=0))
        wanted = [min(total - 1, (2 * part + 1) * total // (2 * count)) for part in range(count)]
        side = _SIDE if count <= 64 else 160
        pictures: dict[int, Frame] = {}
        with av.open(str(video)) as container:
            for number, picture in enumerate(container.decode(video=0)):
                if number in wanted:
                    url = _data_url(picture, side, _TOTAL_BYTES // count)
                    pictures[number] = Frame(float(picture.time or 0.0), url)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"VIDEO {video}: {error}") from error
    if total == 0:
        raise ValueError(f"VIDEO {video} holds no pictures")
    return [pictures[number] for number in wanted]


def _data_url(picture: av.VideoFrame, side: int, most: int) -> str:
    image = picture.to_image()
    image.thumbnail((side, side))
    for quality in (80, 60, 40):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= most:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
