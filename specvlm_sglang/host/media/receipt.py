"""What was read of a video, for whoever must say so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VideoReceipt:
    """One video and the frames that were taken of it.

    Attributes
    ----------
    container, codec : str
        FFmpeg's names, for example ``"mov,mp4,m4a,3gp,3g2,mj2"`` and ``"h264"``.
    duration : float
        Seconds from the first frame to the end of the last.
    frames : int
        Frames in the file, as they are numbered.
    frames_used : tuple of int
        Their numbers, in the order in which they were asked for.
    times : tuple of float
        Their times in seconds after the first frame.
    size : tuple of int
        Height and width in pixels as the file shows them, turned where it says so.
    resized : tuple of int
        Height and width of what was handed on.
    """

    container: str
    codec: str
    duration: float
    frames: int
    frames_used: tuple[int, ...]
    times: tuple[float, ...]
    size: tuple[int, int]
    resized: tuple[int, int]
