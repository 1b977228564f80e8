"""Lists of frames in the place of a video file.

Each frame is loaded by SGLang's own loader of images, so that its rules for media hold: allowed
domains, sizes, local files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sglang.srt.utils.video_decoder import VideoDecoderWrapper

from specvlm_sglang.host import contract
from specvlm_sglang.host.media.picture import check_size
from specvlm_sglang.host.media.sources import load_frame
from specvlm_sglang.host.patching import replace_function
from specvlm_sglang.host.video_requests.options import VideoOptions, shown

MOST_FRAMES = 768
"""Of one list: as many as Qwen's processor takes of a file."""
DEFAULT_RATE = 2.0
"""Frames per second where nothing says it: what the families sample files at."""
JPEG_FRAMES = "data:video/jpeg"
"""How the form begins that has the frames as base64, separated by commas."""
_LONGEST_REASON = 200


@dataclass(frozen=True)
class FrameList:
    """Frames that a client sent, before they are loaded.

    Attributes
    ----------
    pictures
        Each a path, a URL, a data URL or base64, as SGLang takes an image.
    rate
        Frames per second; None where the list does not say it.
    times
        Seconds of each frame, ascending; None where the rate says them.

    Raises
    ------
    ValueError
        No frame, something else than a picture, or times that are no times.
    """

    pictures: tuple[Any, ...]
    rate: float | None = None
    times: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.pictures:
            raise ValueError("a list of frames is empty")
        for index, picture in enumerate(self.pictures):
            if isinstance(picture, list | tuple | dict | int | float) or picture is None:
                raise ValueError(
                    f"frame {index} of a list is {shown(picture)}: it must be a path, a URL, a "
                    "data URL or base64"
                )
        if self.times is not None:
            _check_times(self.times, len(self.pictures))

    def __str__(self) -> str:
        return f"a list of {len(self.pictures)} frames"

    def __len__(self) -> int:
        return len(self.pictures)

    def with_options(self, own: VideoOptions, merged: VideoOptions) -> ChosenFrames:
        """Return what is to be loaded.

        Parameters
        ----------
        own
            Options beside the list: `nframes` and `max_frames` leave some out, evenly.
        merged
            All that hold for it: their `fps` is its rate where it has none.

        Raises
        ------
        ValueError
            More than `MOST_FRAMES` frames.
        """
        count = len(self)
        wanted = min(count, own.nframes or own.max_frames or count)
        if wanted > MOST_FRAMES:
            raise ValueError(
                f"a list of {count} frames: at most {MOST_FRAMES} are taken. Set nframes or "
                "max_frames beside it, or send a file"
            )
        chosen = [int(index) for index in np.linspace(0, count - 1, wanted)]
        rate = self.rate or merged.fps or DEFAULT_RATE
        times = self.times or [index / rate for index in range(count)]
        return ChosenFrames(
            tuple(self.pictures[index] for index in chosen),
            tuple(float(times[index]) for index in chosen),
            given=count,
            rate=rate,
            duration=times[-1] - times[0] + _step(times, rate),
        )


@dataclass(frozen=True)
class ChosenFrames:
    """Frames of a list that the model will see.

    Attributes
    ----------
    pictures, times
        As in `FrameList`, one each.
    given
        Frames that the list had.
    rate
        Frames per second that it was said to have.
    duration
        Seconds from the list's first frame to the end of its last.
    """

    pictures: tuple[Any, ...]
    times: tuple[float, ...]
    given: int
    rate: float
    duration: float

    def __str__(self) -> str:
        return f"a list of {self.given} frames"

    def load(self) -> FrameReader:
        """Load the frames, in order.

        Raises
        ------
        ValueError
            A frame that cannot be loaded, frames of different sizes, or more bytes than
            ``SPECVLM_MAX_DECODED_VIDEO_BYTES``.
        """
        frames: list[npt.NDArray[np.uint8]] = []
        for index, picture in enumerate(self.pictures):
            frame = _load(picture, index)
            if not frames:
                check_size(len(self.pictures), *frame.shape[:2])
            elif frame.shape != frames[0].shape:
                raise ValueError(
                    f"frame {index} has {_size(frame)} pixels and frame 0 has {_size(frames[0])}: "
                    "the frames of a video have one size"
                )
            frames.append(frame)
        return FrameReader(np.stack(frames), self)


class FrameReader(VideoDecoderWrapper):
    """Loaded frames behind the interface of SGLang's decoder.

    Parameters
    ----------
    frames
        uint8 ``[frames, height, width, 3]``.
    chosen
        Where they come from.
    """

    def __init__(self, frames: npt.NDArray[np.uint8], chosen: ChosenFrames) -> None:
        self.specvlm_frames = frames
        self.specvlm_chosen = chosen

    def __len__(self) -> int:
        return len(self.specvlm_frames)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        """Return one frame, uint8 ``[height, width, 3]``."""
        frame: npt.NDArray[np.uint8] = self.specvlm_frames[index]
        return frame

    @property
    def avg_fps(self) -> float:
        """Frames per second: of the times from the first frame to the last, or as was said."""
        return 1 / _step(self.specvlm_chosen.times, self.specvlm_chosen.rate)

    def get_frames_at(self, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return frames, uint8 ``[indices, height, width, 3]``."""
        found: npt.NDArray[np.uint8] = self.specvlm_frames[list(indices)]
        return found

    def get_frames_as_tensor(self, indices: Sequence[int]) -> torch.Tensor:
        """Return frames, uint8 ``[indices, height, width, 3]``."""
        return torch.from_numpy(self.get_frames_at(indices))

    def in_pairs(self) -> FrameReader:
        """Return the frames, the last of an odd number repeated, as Qwen's processor pads."""
        frames = self.specvlm_frames
        if len(frames) % 2 == 0:
            return self
        return FrameReader(np.concatenate([frames, frames[-1:]]), self.specvlm_chosen)

    def close(self) -> None:
        """Nothing is open."""


def jpeg_frames(url: str) -> tuple[str, ...] | None:
    """Return the frames of a ``data:video/jpeg;base64,A,B,C`` URL; None for any other.

    Raises
    ------
    ValueError
        Such a URL that is not base64.
    """
    if url[: len(JPEG_FRAMES)].lower() != JPEG_FRAMES:
        return None
    header, *bodies = url.split(",")
    if not header.lower().endswith(";base64") or not any(bodies):
        raise ValueError(f"{JPEG_FRAMES} must be followed by ;base64, and frames between commas")
    return tuple(f"data:image/jpeg;base64,{body}" for body in bodies)


def install() -> None:
    """Let SGLang's loading of videos load lists of frames; idempotent."""
    contract.require("frame lists")
    replace_function("sglang.srt.utils.common", "load_video", _with_lists)


def _with_lists(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_video(video_file: Any, use_gpu: bool = True) -> Any:
        if isinstance(video_file, ChosenFrames):
            return video_file.load()
        return original(video_file, use_gpu)

    return load_video


def _step(times: Sequence[float], rate: float) -> float:
    """Mean seconds between frames; of ``rate`` where there is one frame."""
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / rate


def _check_times(times: Sequence[Any], frames: int) -> None:
    if len(times) != frames:
        raise ValueError(f"times has {len(times)} entries for {frames} frames")
    before = -1.0
    for index, time in enumerate(times):
        is_number = isinstance(time, int | float) and not isinstance(time, bool)
        if not (is_number and math.isfinite(time) and time >= 0 and time > before):
            raise ValueError(
                f"times[{index}]={shown(time)} must be seconds from 0, each above the one before"
            )
        before = time


def _load(picture: Any, index: int) -> npt.NDArray[np.uint8]:
    try:
        return np.asarray(load_frame(picture))
    except ValueError as error:
        reason = str(error)
        if len(reason) > _LONGEST_REASON:
            reason = f"{reason[:_LONGEST_REASON]}..."
        raise ValueError(f"frame {index} of the list: {reason}") from error


def _size(frame: npt.NDArray[np.uint8]) -> str:
    height, width, _ = frame.shape
    return f"{width} x {height}"
