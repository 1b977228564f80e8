"""Video files without system packages: PyAV's bundled FFmpeg where torchcodec finds none.

torchcodec's wheel links the system's FFmpeg. Where that is missing it still imports and fails at
the first frame, so SGLang's own fallback (chosen at import) is never taken. We look once, at the
first video, and put a PyAV reader behind SGLang's ``VideoDecoderWrapper``.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

logger = logging.getLogger(__name__)

MAX_DECODED_BYTES_VARIABLE = "SPECVLM_MAX_DECODED_VIDEO_BYTES"
DEFAULT_MAX_DECODED_BYTES = 4 << 30
# Decoding on is cheaper than seeking when the next wanted frame is this close.
_SEEK_BEYOND_FRAMES = 48


class FrameBatch(NamedTuple):
    """Decoded frames in the form that SGLang's decord path expects."""

    frames: npt.NDArray[np.uint8]

    def asnumpy(self) -> npt.NDArray[np.uint8]:
        """Return the frames, uint8 ``[frames, height, width, 3]``."""
        return self.frames


class PyAVReader:
    """Random access to the frames of a video, with the interface of decord's ``VideoReader``.

    Frames are numbered in presentation order. Opening reads the packet index only; frames are
    decoded when asked for.

    Parameters
    ----------
    source
        File path, or the encoded bytes.

    Raises
    ------
    ValueError
        No video stream, no frame in it, or not a video file.
    FileNotFoundError
        The path does not exist.
    """

    def __init__(self, source: str | bytes) -> None:
        self._source = source
        try:
            with self._open() as container:
                if not container.streams.video:
                    raise ValueError("the file has no video stream")
                stream = container.streams.video[0]
                self._time_stamps = sorted(
                    packet.pts
                    for packet in container.demux(stream)
                    if packet.pts is not None and not packet.is_discard
                )
                rate = stream.average_rate or stream.guessed_rate
                self._height, self._width = stream.height, stream.width
        except av.error.FFmpegError as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"not a readable video file ({error.strerror})") from error
        if not self._time_stamps:
            raise ValueError("the video stream has no frames")
        self._fps = float(rate) if rate else 0.0

    def _open(self) -> Any:
        source = io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source
        return av.open(source, mode="r")

    def __len__(self) -> int:
        return len(self._time_stamps)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        """Return one frame, uint8 ``[height, width, 3]``; negative indices count from the end."""
        frame: npt.NDArray[np.uint8] = self.get_batch([index]).frames[0]
        return frame

    def get_avg_fps(self) -> float:
        """Return the average frame rate in frames per second; 0.0 where the file has none."""
        return self._fps

    def get_batch(self, indices: Sequence[int]) -> FrameBatch:
        """Decode the frames at ``indices`` (any order, repeats allowed).

        Raises
        ------
        IndexError
            An index outside the video.
        ValueError
            A frame that cannot be decoded, or more bytes than the limit allows.
        """
        count = len(self)
        for index in indices:
            if not -count <= index < count:
                raise IndexError(f"frame {index} is outside the video's {count} frames")
        wanted = [index % count for index in indices]
        _check_size(len(wanted), self._height, self._width)
        decoded = dict(self._decode(sorted(set(wanted))))
        return FrameBatch(np.stack([decoded[index] for index in wanted]))

    def _decode(self, wanted: list[int]) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        try:
            with self._open() as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                frames = container.decode(stream)
                at = 0
                for index in wanted:
                    time_stamp = self._time_stamps[index]
                    if index - at > _SEEK_BEYOND_FRAMES:
                        container.seek(time_stamp, stream=stream)
                        frames = container.decode(stream)
                    for frame in frames:
                        if frame.pts is not None and frame.pts >= time_stamp:
                            yield index, frame.to_ndarray(format="rgb24")
                            break
                    else:
                        raise ValueError(
                            f"frame {index} of {len(self)} cannot be decoded: the file is damaged "
                            "or cut short"
                        )
                    at = index + 1
        except av.error.FFmpegError as error:
            raise ValueError(f"the video cannot be decoded ({error.strerror})") from error


def _check_size(frames: int, height: int, width: int) -> None:
    limit = int(os.environ.get(MAX_DECODED_BYTES_VARIABLE, DEFAULT_MAX_DECODED_BYTES))
    size = frames * height * width * 3
    if size > limit:
        raise ValueError(
            f"{frames} frames of {width} x {height} pixels decode to {size} bytes; the limit is "
            f"{limit} ({MAX_DECODED_BYTES_VARIABLE})"
        )


@cache
def torchcodec_works() -> bool:
    """Whether torchcodec finds FFmpeg libraries on this machine."""
    try:
        from torchcodec import _core  # noqa: F401  (loads the libraries)
        from torchcodec.decoders import VideoDecoder

        VideoDecoder(b"")
    except (ImportError, OSError):
        return False
    except Exception as error:
        return "libtorchcodec" not in str(error)
    return True


def install() -> None:
    """Put the PyAV reader behind SGLang's ``VideoDecoderWrapper`` where torchcodec cannot work."""
    contract.require("video")

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def __init__(
            self: Any, source: str | bytes, device: str = "cpu", num_decode_threads: int = 0
        ) -> None:
            if torchcodec_works():
                original(self, source, device=device, num_decode_threads=num_decode_threads)
                return
            from sglang.srt.utils import video_decoder

            if video_decoder._BACKEND != "decord":
                logger.info("torchcodec finds no FFmpeg: videos are decoded with PyAV.")
                # The wrapper's other methods ask this name which interface its reader has.
                video_decoder._BACKEND = "decord"
            self._source = source
            self._num_decode_threads = num_decode_threads
            self._source_bytes = source if isinstance(source, bytes) else None
            self._source_path = source if isinstance(source, str) else None
            self._tmp_path = None
            self._decoder = PyAVReader(source)

        return __init__

    replace_function("sglang.srt.utils.video_decoder", "VideoDecoderWrapper.__init__", make)
