"""What became of each video of a request: ``meta_info["specvlm"]["videos"]``.

The process that answers loads the videos, so it keeps the receipts on SGLang's request object until
the response is built; they end with the request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from specvlm_sglang.host.media.reader import PyAVReader
from specvlm_sglang.host.video_requests.frames import FrameReader

FIELD = "videos"
OF_FRAMES = "frames"
"""As a container: the client sent frames."""
_HELD_AS = "specvlm_videos"
_DIGITS = 3


@dataclass(frozen=True)
class Source:
    """A video as it came.

    Attributes
    ----------
    container
        Format of the file, `OF_FRAMES` for a list, None where the decoder does not say.
    duration
        Seconds, None where unknown.
    frames
        Frames in the file, or in the list.
    frames_used
        Frames that the model sees.
    times
        Seconds of each of these, None where unknown.
    """

    container: str | None
    duration: float | None
    frames: int
    frames_used: int
    times: list[float] | None


def describe(video: Any, indices: Sequence[int]) -> Source:
    """Describe a video of which frames were taken.

    Parameters
    ----------
    video
        SGLang's decoder, or a `FrameReader`.
    indices
        The frames.
    """
    if isinstance(video, FrameReader):
        chosen = video.specvlm_chosen
        seen = chosen.times
        return Source(
            OF_FRAMES, _rounded(chosen.duration), chosen.given, len(seen), _all_rounded(seen)
        )
    total, rate = len(video), video.avg_fps
    reader: Any = getattr(video, "_decoder", None)
    duration, times = None, None
    if isinstance(reader, PyAVReader):
        duration, times = reader.duration, reader.times(indices)
    elif rate:
        duration, times = total / rate, [index / rate for index in indices]
    return Source(
        getattr(reader, "container", None),
        None if duration is None else _rounded(duration),
        total,
        len(indices),
        None if times is None else _all_rounded(times),
    )


def of_pixels(frames: int) -> Source:
    """Describe a video that came as pixels: nothing is known but its frames."""
    return Source(None, None, frames, frames, None)


def keep(request: Any, receipts: Sequence[dict[str, Any]]) -> None:
    """Keep the receipts on SGLang's request object."""
    setattr(request, _HELD_AS, list(receipts))


def kept(request: Any) -> list[dict[str, Any]]:
    """Return the receipts of SGLang's request object; none where it has no video."""
    found: list[dict[str, Any]] = getattr(request, _HELD_AS, [])
    return found


def receipt(source: Source, *, height: int, width: int, tokens: int) -> dict[str, Any]:
    """Return what the response shows of one video.

    Parameters
    ----------
    source
        As it came.
    height, width
        Pixels of a frame as the model sees it.
    tokens
        Of the prompt, that are the video's.
    """
    return {**asdict(source), "height": height, "width": width, "tokens": tokens}


def _rounded(value: float) -> float:
    return round(float(value), _DIGITS)


def _all_rounded(values: Sequence[float]) -> list[float]:
    return [_rounded(value) for value in values]
