"""Random access to the frames of a video file, with PyAV's bundled FFmpeg.

The frame asked for is the frame got: no seek is trusted. Where one landed is verified by time
stamps, and where it cannot be, decoding begins at the start.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition

from specvlm_sglang.host.media import orientation, timeline
from specvlm_sglang.host.media.formats import SOUND_FORMATS, open_container, open_source
from specvlm_sglang.host.media.picture import check_size, max_decoded_bytes, to_rgb
from specvlm_sglang.host.media.timeline import Timeline

# Decoding on is cheaper than seeking when the next wanted frame is this close.
_SEEK_BEYOND_FRAMES = 48
_CROPPED_PIXELS = 1 << 20
_MOST_PIXELS = (1 << 31) - 1
_NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image

Picture = npt.NDArray[np.uint8]
"""uint8 ``[height, width, 3]``."""


class FrameBatch(NamedTuple):
    """Decoded frames in the form that SGLang's decord path expects."""

    frames: npt.NDArray[np.uint8]

    def asnumpy(self) -> npt.NDArray[np.uint8]:
        """Return the frames, uint8 ``[frames, height, width, 3]``."""
        return self.frames


class _LostPlaceError(Exception):
    """A seek landed where the wanted frame does not come up."""


class PyAVReader:
    """The frames of a video, with the interface of decord's ``VideoReader``.

    Frames are numbered as `timeline` says. Opening decodes the first frame, or all where the
    packets do not tell how many there are; a frame's pixels are made when it is asked for.

    Parameters
    ----------
    source
        File path, or the encoded bytes.
    format_name
        FFmpeg's name of the demuxer; found from the bytes where None.

    Attributes
    ----------
    height, width : int
        Of a frame as it is shown, in pixels.
    container, codec : str
        FFmpeg's names, for example ``"mov,mp4,m4a,3gp,3g2,mj2"`` and ``"h264"``.

    Raises
    ------
    ValueError
        No video stream, no frame in it, or not a video file that is read.
    FileNotFoundError
        The path does not exist.
    """

    def __init__(self, source: str | bytes, format_name: str | None = None) -> None:
        self._source, self._format_name = source, format_name
        with self._opened() as (container, stream):
            self.container: str = container.format.name
            self.codec: str = stream.codec_context.codec.canonical_name
            first = next(timeline.frames_of(container, stream), None)
            if first is None:
                raise ValueError("the video stream has no frames")
        self._stored = (first.height, first.width)
        self._turn = orientation.of_frame(first)
        self.height, self.width = self._turn.shape(*self._stored)
        self._timeline = self._read_timeline(first.interlaced_frame)

    def _read_timeline(self, is_interlaced: bool) -> Timeline:
        with self._opened() as (container, stream):
            by_packets = timeline.read(container, stream, is_interlaced)
        if by_packets is not None:
            return by_packets
        with self._opened() as (container, stream):
            return timeline.count(container, stream)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """The freshly opened file and its video stream."""
        with open_source(self._source) as file:
            try:
                with open_container(file, self._format_name) as container:
                    stream = _video_stream(container)
                    stream.thread_type = "AUTO"
                    check_size(1, stream.codec_context.height, stream.codec_context.width)
                    # Decoders refuse pictures that grow beyond it inside the stream; generous, for
                    # they count a picture before it is cropped.
                    limit = min(max_decoded_bytes() + _CROPPED_PIXELS, _MOST_PIXELS)
                    stream.codec_context.options = {"max_pixels": str(limit)}
                    yield container, stream
            except av.error.FFmpegError as error:
                raise ValueError(f"the video cannot be decoded ({error.strerror})") from error

    def __len__(self) -> int:
        return len(self._timeline.stamps)

    def __getitem__(self, index: int) -> Picture:
        """Return one frame, uint8 ``[height, width, 3]``; negative indices count from the end."""
        frame: Picture = self.get_batch([index]).frames[0]
        return frame

    def get_avg_fps(self) -> float:
        """Return the average frame rate in frames per second, above 0."""
        return self._timeline.rate

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return self._timeline.duration()

    def times(self, indices: Sequence[int]) -> list[float]:
        """Return the seconds after the first frame at which frames are shown."""
        times = self._timeline.times()
        return [times[index] for index in indices]

    def get_batch(self, indices: Sequence[int]) -> FrameBatch:
        """Decode the frames at ``indices`` (any order, repeats allowed).

        Raises
        ------
        IndexError
            An index outside the video.
        ValueError
            A frame that cannot be decoded, or more bytes than the limit allows.
        """
        wanted = self._numbers(indices)
        check_size(len(wanted), self.height, self.width)
        decoded = dict(self.pictures(sorted(set(wanted))))
        return FrameBatch(np.stack([decoded[index] for index in wanted]))

    def pictures(self, indices: Sequence[int]) -> Iterator[tuple[int, Picture]]:
        """Decode frames one by one; none is kept here.

        Parameters
        ----------
        indices
            Ascending, each at most once.

        Yields
        ------
        tuple
            The number of a frame and its picture.

        Raises
        ------
        IndexError
            An index outside the video.
        ValueError
            A frame that cannot be decoded, or one larger than the limit allows.
        """
        wanted = self._numbers(indices)
        for index, frame in self._decode(wanted):
            yield index, to_rgb(frame, self._stored, self._turn)

    def _numbers(self, indices: Sequence[int]) -> list[int]:
        count = len(self)
        for index in indices:
            if not -count <= index < count:
                raise IndexError(f"frame {index} is outside the video's {count} frames")
        return [int(index) % count for index in indices]

    def _decode(self, wanted: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """The wanted frames, ascending; from the start where a seek lost its place."""
        walks = [self._decode_from_start]
        if self._timeline.keys:
            walks = [
                self._decode_seeking,
                self._decode_from_start,
                self._decode_counted,
                self._decode_damaged,
            ]
        done = 0
        for walk in walks:
            try:
                with self._opened() as (container, stream):
                    for found in walk(container, stream, wanted[done:]):
                        yield found
                        done += 1
            except _LostPlaceError:
                continue
            if done == len(wanted):
                return
        raise ValueError(
            f"frame {wanted[done]} of {len(self)} cannot be decoded: the file is damaged "
            "or cut short"
        )

    def _decode_from_start(
        self, container: Any, stream: Any, wanted: Sequence[int]
    ) -> Iterator[tuple[int, Any]]:
        frames = timeline.frames_of(container, stream)
        numbered: Iterator[tuple[int, Any]] = enumerate(frames)
        if self._timeline.keys:
            numbered = _in_step(frames, self._timeline.stamps, 0)
        for index in wanted:
            for number, frame in numbered:
                if number == index:
                    yield index, frame
                    break
            else:
                return

    def _decode_counted(
        self, container: Any, stream: Any, wanted: Sequence[int]
    ) -> Iterator[tuple[int, Any]]:
        """By number, where frames come out with other time stamps than their packets have."""
        with self._opened() as (counted, its_stream):
            found = timeline.count(counted, its_stream)
        if len(found.stamps) == len(self):
            self._timeline = found
            yield from self._decode_from_start(container, stream, wanted)

    def _decode_damaged(
        self, container: Any, stream: Any, wanted: Sequence[int]
    ) -> Iterator[tuple[int, Any]]:
        """By time stamp, where some frames do not decode."""
        left = iter(wanted)
        index = next(left, None)
        for frame in timeline.frames_of(container, stream):
            if index is None:
                return
            if frame.pts == self._timeline.stamps[index]:
                yield index, frame
                index = next(left, None)

    def _decode_seeking(
        self, container: Any, stream: Any, wanted: Sequence[int]
    ) -> Iterator[tuple[int, Any]]:
        stamps = self._timeline.stamps
        frames = _in_step(timeline.frames_of(container, stream), stamps, 0)
        at = 0
        for index in wanted:
            if index - at > _SEEK_BEYOND_FRAMES and self._has_key_between(at, index):
                frames = self._seek(container, stream, index)
            frame = next((frame for number, frame in frames if number == index), None)
            if frame is None or frame.is_corrupt:
                raise _LostPlaceError
            yield index, frame
            at = index + 1

    def _has_key_between(self, at: int, index: int) -> bool:
        stamps = self._timeline.stamps
        key, here = self._timeline.key_before(index), stamps[at]
        return key is not None and here is not None and key > here

    def _seek(self, container: Any, stream: Any, index: int) -> Iterator[tuple[int, Any]]:
        """Decode from a key frame at ``index`` or before it, wherever the container finds one."""
        stamps = self._timeline.stamps
        container.seek(self._timeline.key_before(index), stream=stream)
        packets = timeline.packets_of(container, stream)
        first = next(packets, None)
        if first is None or not first.is_keyframe or first.pts not in self._timeline.keys:
            raise _LostPlaceError
        landed = bisect_left(stamps, first.pts)
        if landed > index:
            raise _LostPlaceError
        return _in_step(_frames_from(first, packets), stamps, landed)


def _frames_from(first: Any, packets: Iterator[Any]) -> Iterator[Any]:
    yield from timeline.decode(first)
    for packet in packets:
        yield from timeline.decode(packet)


def _in_step(
    frames: Iterator[Any], stamps: Sequence[Any], number: int
) -> Iterator[tuple[int, Any]]:
    """Number frames from ``number`` on, as long as each has the time stamp of its number.

    What is shown before the first is passed over: it needs frames that were not decoded.
    """
    begin = stamps[number]
    for frame in frames:
        if frame.pts is None or number == len(stamps):
            raise _LostPlaceError
        if frame.pts < begin:
            continue
        if frame.pts != stamps[number]:
            raise _LostPlaceError
        yield number, frame
        number += 1


def _video_stream(container: Any) -> Any:
    """The default one of the video streams, or the first; a cover picture is none."""
    streams = [one for one in container.streams.video if not one.disposition & _NO_VIDEO]
    if not streams:
        kind = set(container.format.name.split(","))
        cover = "only a cover picture" if container.streams.video else "no video stream"
        sound = ": it is sound" if kind & set(SOUND_FORMATS) or container.streams.audio else ""
        raise ValueError(f"the file has {cover}{sound}")
    chosen = next((one for one in streams if one.disposition & Disposition.default), streams[0])
    if chosen.codec_context is None:
        raise ValueError("the video stream is of a codec that cannot be decoded here")
    return chosen
