"""Which frames a video has, when each is shown, and where decoding can begin.

Frames are numbered in presentation order, those only that really decode. Containers that store one
whole picture a packet, each with its time, are numbered by their packets. In all others a packet
may be half a picture, several, or none, so their frames are counted by decoding.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import av

ASSUMED_RATE = 25.0
"""Frames per second where neither time stamps nor the file say; FFmpeg assumes it too."""

_PACKET_IS_PICTURE = {"mov", "matroska", "flv"}
_CODECS = {"h264", "hevc", "av1", "vp8", "vp9", "mjpeg", "prores", "dnxhd", "ffv1"}


class _Packet(NamedTuple):
    stamp: int | None
    is_key: bool
    is_shown: bool


@dataclass(frozen=True)
class Timeline:
    """The frames of one video stream.

    Attributes
    ----------
    stamps : tuple
        A presentation time stamp a frame, in units of the stream's time base; None where a frame
        has none.
    time_base : Fraction
        Seconds a unit.
    rate : float
        Average frames per second, above 0.
    keys : tuple of int
        Time stamps where decoding can begin, ascending; empty where it must begin at the start.
    """

    stamps: tuple[int | None, ...]
    time_base: Fraction
    rate: float
    keys: tuple[int, ...] = ()

    def key_before(self, index: int) -> int | None:
        """The time stamp of the last key frame that is shown with frame ``index`` or before it."""
        stamp = self.stamps[index]
        at = 0 if stamp is None else bisect_right(self.keys, stamp)
        return self.keys[at - 1] if at else None

    def times(self) -> tuple[float, ...]:
        """Seconds of each frame after the first; by the rate where time stamps cannot tell."""
        first, *_ = self.stamps
        stamps = [stamp for stamp in self.stamps if stamp is not None]
        if first is None or len(stamps) < len(self.stamps) or not _ascends(stamps):
            return tuple(index / self.rate for index in range(len(self.stamps)))
        return tuple(float((stamp - first) * self.time_base) for stamp in stamps)

    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return self.times()[-1] + 1 / self.rate


def average_rate(
    stamps: Sequence[int | None], time_base: Fraction, declared: Fraction | None
) -> float:
    """Frames per second, from the first and the last time stamp.

    A declared rate stands where the stamps agree with it as far as their unit can tell, and where
    they tell nothing: fewer than two, or not ascending.
    """
    known = [(index, stamp) for index, stamp in enumerate(stamps) if stamp is not None]
    if len(known) < 2 or not _ascends([stamp for _, stamp in known]):
        return float(declared) if declared and declared > 0 else ASSUMED_RATE
    (first_index, first), (last_index, last) = known[0], known[-1]
    frames = last_index - first_index
    if (
        declared
        and declared > 0
        and abs(frames / declared - (last - first) * time_base) <= time_base
    ):
        return float(declared)
    return float(frames / ((last - first) * time_base))


def read(container: Any, stream: Any, is_interlaced: bool) -> Timeline | None:
    """Number the frames by their packets, from where the container stands to its end.

    Returns
    -------
    Timeline or None
        None where packets do not tell: `count` them.
    """
    codec = stream.codec_context.codec.canonical_name
    if codec not in _CODECS or is_interlaced:
        return None
    if not _PACKET_IS_PICTURE & set(container.format.name.split(",")):
        return None
    packets = []
    for packet in packets_of(container, stream):
        if packet.size:
            shown = not packet.is_discard and not _is_hidden(packet, codec)
            packets.append(_Packet(packet.pts, packet.is_keyframe, shown))
    if not _is_plain(packets):
        return None
    stamps = sorted(
        packet.stamp for packet in packets if packet.is_shown and packet.stamp is not None
    )
    keys = sorted(packet.stamp for packet in packets if packet.is_key and packet.stamp is not None)
    return _timeline(stream, stamps, keys)


def count(container: Any, stream: Any) -> Timeline:
    """Number the frames by decoding them all."""
    return _timeline(stream, [frame.pts for frame in frames_of(container, stream)], [])


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """The packets from where the container stands; a file that is cut off just ends."""
    try:
        yield from container.demux(stream)
    except (av.error.InvalidDataError, av.error.EOFError, IndexError):
        # The last: PyAV, at the very end, where a stream that it had not seen came up on the way.
        return


def frames_of(container: Any, stream: Any) -> Iterator[Any]:
    """Decode from where the container stands; packets that do not decode are passed over."""
    for packet in packets_of(container, stream):
        yield from decode(packet)


def decode(packet: Any) -> Sequence[Any]:
    """The frames that come out when ``packet`` goes in."""
    try:
        frames: Sequence[Any] = packet.decode()
    except (av.error.InvalidDataError, av.error.EOFError):
        return ()
    return frames


def _timeline(stream: Any, stamps: Sequence[int | None], keys: Sequence[int]) -> Timeline:
    declared = stream.average_rate or stream.guessed_rate
    base = stream.time_base
    return Timeline(tuple(stamps), base, average_rate(stamps, base, declared), tuple(keys))


def _is_plain(packets: Sequence[_Packet]) -> bool:
    """Whether each packet is a picture that decodes, at a time of its own."""
    stamps = [packet.stamp for packet in packets]
    if not packets or any(stamp is None for stamp in stamps) or len(set(stamps)) < len(stamps):
        return False
    # Pictures that are shown before the first key frame need one that was cut off.
    first = packets[0]
    return first.is_key and all(stamp >= first.stamp for stamp in stamps)  # type: ignore[operator]


def _is_hidden(packet: Any, codec: str) -> bool:
    """Whether a packet is a reference picture that is never shown (VP8 and VP9)."""
    if codec not in ("vp8", "vp9"):
        return False
    head = memoryview(packet)[0]
    if codec == "vp8":
        return not head & 0b0001_0000
    has_profile_3 = head & 0b0011_0000 == 0b0011_0000
    shows_existing, is_shown = (0b0100, 0b0001) if has_profile_3 else (0b1000, 0b0010)
    # What stands at the end shows a picture where several are in one packet.
    is_superframe = memoryview(packet)[-1] & 0b1110_0000 == 0b1100_0000
    return not (head & shows_existing or head & is_shown or is_superframe)


def _ascends(stamps: Sequence[int]) -> bool:
    return all(before < after for before, after in pairwise(stamps))
