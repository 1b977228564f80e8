"""The frame asked for is the frame got, in every container that can be written here.

Each frame carries its number in its pixels. Wanted frames lie close together and far apart, so that
readers that trust a seek or a packet's time stamp return others.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from specvlm_sglang.host.media.reader import PyAVReader
from tests.support import numbered

FRAMES = 130
B_FRAMES = {"g": "12", "bf": "2"}
INTERLACED = {**B_FRAMES, "flags": "+ildct+ilme"}
HIDDEN = {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "40", "b": "200k"}
X265 = {"x265-params": "keyint=30:bframes=3:log-level=none"}
FULL = {"pix_fmt": "yuvj420p"}
BROADCAST = {"height": 576, "width": 720}
TELEPHONE = {"height": 144, "width": 176}

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mp4, H.264": ("a.mp4", "libx264", {"options": {"g": "30", "bf": "3"}}),
    "mp4, H.264, one key frame": ("a.mp4", "libx264", {"options": {"g": "999", "bf": "2"}}),
    "mp4, H.264, open groups": (
        "a.mp4",
        "libx264",
        {"options": {"g": "20", "bf": "3", "x264-params": "open-gop=1"}},
    ),
    "mp4 in fragments": (
        "a.mp4",
        "libx264",
        {"options": B_FRAMES, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    ),
    "mp4, HEVC": ("a.mp4", "libx265", {"options": X265}),
    "mp4, AV1": ("a.mp4", "libsvtav1", {}),
    "mp4, MPEG-4": ("a.mp4", "mpeg4", {"options": B_FRAMES}),
    "mp4, interlaced": ("a.mp4", "libx264", {"options": INTERLACED}),
    "mov, ProRes": ("a.mov", "prores_ks", {"pix_fmt": "yuv422p10le"}),
    "3gp, H.263": ("a.3gp", "h263", {"container": "3gp", **TELEPHONE}),
    "mkv, H.264": ("a.mkv", "libx264", {"options": B_FRAMES}),
    "webm, VP8": ("a.webm", "libvpx", {"options": HIDDEN}),
    "webm, VP9": ("a.webm", "libvpx-vp9", {"options": HIDDEN}),
    "webm, AV1": ("a.webm", "libsvtav1", {}),
    "avi, MPEG-4": ("a.avi", "mpeg4", {"options": B_FRAMES}),
    "avi, H.264": ("a.avi", "libx264", {"options": B_FRAMES}),
    "avi, MJPEG": ("a.avi", "mjpeg", FULL),
    "flv, H.264": ("a.flv", "libx264", {"options": B_FRAMES}),
    "flv, Sorenson": ("a.flv", "flv", {"options": {"g": "12"}}),
    "transport stream, H.264": ("a.ts", "libx264", {"options": B_FRAMES}),
    "transport stream, HEVC": ("a.ts", "libx265", {"options": X265}),
    "transport stream, MPEG-2": ("a.ts", "mpeg2video", {"options": B_FRAMES}),
    "transport stream, interlaced": ("a.ts", "mpeg2video", {"options": INTERLACED}),
    "program stream, MPEG-1": ("a.mpg", "mpeg1video", {"options": B_FRAMES}),
    "program stream, MPEG-2": ("a.vob", "mpeg2video", {"options": B_FRAMES}),
    "program stream, H.264": ("a.vob", "libx264", {"options": B_FRAMES}),
    "wmv": ("a.wmv", "wmv2", {"container": "asf"}),
    "ogg": ("a.ogv", "libvpx", {}),
    "mxf": ("a.mxf", "mpeg2video", {"options": B_FRAMES}),
    "nut": ("a.nut", "libx264", {"options": B_FRAMES}),
    "gxf": ("a.gxf", "mpeg2video", BROADCAST),
    "wtv": ("a.wtv", "mpeg2video", {}),
    "dv": ("a.dv", "dvvideo", BROADCAST),
    "rm": ("a.rm", "rv10", {"height": 96}),
    "swf": ("a.swf", "flv", {}),
    "gif": ("a.gif", "gif", {"pix_fmt": "rgb8"}),
    "apng": ("a.apng", "apng", {"pix_fmt": "rgb24"}),
    "y4m": ("a.y4m", "wrapped_avframe", {"container": "yuv4mpegpipe"}),
    "ivf, VP8": ("a.ivf", "libvpx", {"options": HIDDEN}),
    "ivf, VP9": ("a.ivf", "libvpx-vp9", {}),
    "bare H.264": ("a.h264", "libx264", {"options": {"g": "30", "bf": "3"}}),
    "bare HEVC": ("a.hevc", "libx265", {"options": X265}),
    "bare MPEG-4": ("a.m4v", "mpeg4", {"options": B_FRAMES}),
    "bare MPEG-2": ("a.m2v", "mpeg2video", {"options": B_FRAMES}),
    "bare MJPEG": ("a.mjpeg", "mjpeg", FULL),
    "bare AV1": ("a.obu", "libsvtav1", {}),
    "bare H.261": ("a.h261", "h261", TELEPHONE),
    "bare H.263": ("a.h263", "h263", TELEPHONE),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("containers")

    def make(kind: str) -> Path:
        name, codec, settings = KINDS[kind]
        path = folder / f"{list(KINDS).index(kind)}-{name}"
        return path if path.exists() else numbered.write(path, codec, frames=FRAMES, **settings)

    return make


WANTED = {
    "all": list(range(FRAMES)),
    "far apart": [2, 60, 127],
    "neighbours near the end": [118, 119, 120],
    "back and forth": [129, 3, 64, 3, -1],
}


NEARLY = ("gxf", "bare H.261", "bare H.263")
"""Kinds that cannot store 25 frames a second."""


@pytest.mark.parametrize("kind", KINDS)
def test_each_frame_that_is_asked_for_comes(kind: str, made: Callable[[str], Path]) -> None:
    reader = PyAVReader(made(kind).read_bytes())
    assert len(reader) == FRAMES
    for indices in WANTED.values():
        expected = [index % FRAMES for index in indices]
        assert numbered.read_all(reader.get_batch(indices).frames) == expected


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NEARLY])
def test_the_rate_is_the_encoders(kind: str, made: Callable[[str], Path]) -> None:
    assert PyAVReader(str(made(kind))).get_avg_fps() == 25.0


# A header that counts in pictures a second of its own: near enough to choose frames by.
@pytest.mark.parametrize("kind", NEARLY)
def test_a_rate_that_a_format_cannot_store_is_close(kind: str, made: Callable[[str], Path]) -> None:
    assert PyAVReader(str(made(kind))).get_avg_fps() == pytest.approx(25, rel=0.21)


LYING_SEEKS = ["mp4, H.264", "mkv, H.264", "webm, VP9", "flv, H.264"]


@pytest.mark.parametrize("kind", LYING_SEEKS)
@pytest.mark.parametrize("lands", ["at the end", "at the start", "nowhere"])
def test_a_seek_is_not_trusted_wherever_it_lands(
    kind: str, lands: str, made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = PyAVReader(str(made(kind)))
    places = {"at the end": reader._timeline.keys[-1], "at the start": reader._timeline.keys[0]}
    asked = []

    class Lying:
        """A container that goes to another place than it is told."""

        def __init__(self, container: Any) -> None:
            self._container = container

        def __getattr__(self, name: str) -> Any:
            return getattr(self._container, name)

        def seek(self, stamp: int, stream: Any) -> None:
            asked.append(stamp)
            if lands in places:
                self._container.seek(places[lands], stream=stream)

    honest = reader._decode_seeking
    monkeypatch.setattr(
        reader, "_decode_seeking", lambda container, *args: honest(Lying(container), *args)
    )
    assert numbered.read_all(reader.get_batch([0, 70, 126]).frames) == [0, 70, 126]
    assert asked, "nothing was sought"


def test_seeks_save_decoding_where_they_can_be_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = numbered.write(tmp_path / "a.mp4", "libx264", frames=400, options={"g": "20", "bf": "2"})
    reader = PyAVReader(str(path))
    decoded = 0
    from specvlm_sglang.host.media import timeline

    honest = timeline.decode

    def counting(packet: Any) -> Any:
        nonlocal decoded
        decoded += 1
        return honest(packet)

    monkeypatch.setattr(timeline, "decode", counting)
    assert numbered.read_all(reader.get_batch([5, 395]).frames) == [5, 395]
    assert decoded < 100


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options"),
    [
        ("a.mp4", "libx264", "yuv420p10le", {}),
        ("a.mp4", "libx264", "yuv444p", {}),
        ("a.mp4", "libx265", "yuv420p12le", {"x265-params": "log-level=none"}),
        ("a.mov", "prores_ks", "yuv444p10le", {}),
        ("a.mkv", "ffv1", "gray", {}),
        ("a.mkv", "ffv1", "bgra", {}),
    ],
)
def test_ten_bits_and_other_samplings_are_read(
    name: str, codec: str, pix_fmt: str, options: dict[str, str], tmp_path: Path
) -> None:
    path = numbered.write(tmp_path / name, codec, frames=6, pix_fmt=pix_fmt, options=options)
    frames = PyAVReader(str(path)).get_batch(range(6)).frames
    assert frames.dtype == np.uint8
    assert numbered.read_all(frames) == list(range(6))


def test_a_transport_stream_cut_in_the_middle_of_a_group_is_numbered_by_what_decodes(
    tmp_path: Path,
) -> None:
    path = numbered.write(tmp_path / "a.ts", "libx264", frames=90, options={"g": "30", "bf": "2"})
    packets = path.read_bytes()
    cut = packets[len(packets) // 4 // 188 * 188 :]
    reader = PyAVReader(cut)
    numbers = numbered.read_all(reader.get_batch(range(len(reader))).frames)
    assert numbers == list(range(90 - len(reader), 90))
    assert 20 < len(reader) < 80
    far = [0, len(reader) - 1]
    assert numbered.read_all(reader.get_batch(far).frames) == [numbers[0], numbers[-1]]


def test_streams_that_come_up_on_the_way_disturb_nothing(tmp_path: Path) -> None:
    path = numbered.write(tmp_path / "a.ts", "libx264", frames=60, options={"bf": "2"})
    packets = bytearray(path.read_bytes())
    # A map of the programme, somewhere later, that lists more streams than the first did.
    other = write_with_sound(tmp_path / "b.ts").read_bytes()
    maps = [at for at in range(0, len(other), 188) if identifier(other, at) == 0x1000]
    later = len(packets) // 188 * 3 // 4 * 188
    packets[later:later] = other[maps[0] : maps[0] + 188]
    sound = [at for at in range(0, len(other), 188) if identifier(other, at) == 0x101]
    packets += b"".join(other[at : at + 188] for at in sound)
    reader = PyAVReader(bytes(packets))
    assert numbered.read_all(reader.get_batch(range(len(reader))).frames) == list(range(60))


def identifier(stream: bytes, at: int) -> int:
    """Which of a transport stream's parts the packet at ``at`` belongs to."""
    return (stream[at + 1] & 0x1F) << 8 | stream[at + 2]


def write_with_sound(path: Path) -> Path:
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = numbered.WIDTH, numbered.HEIGHT, "yuv420p"
        sound = file.add_stream("mp2", rate=48000, layout="mono")
        for index in range(30):
            picture = av.VideoFrame.from_ndarray(numbered.draw(index), format="rgb24")
            file.mux(video.encode(picture))
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 48000, index * 1152
            file.mux(sound.encode(frame))
        file.mux(video.encode())
        file.mux(sound.encode())
    return path


def hide(path: Path, hidden: set[int], to: Path) -> Path:
    """The VP8 file with some pictures marked as references that are never shown."""
    with av.open(str(path)) as old, av.open(str(to), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for index, packet in enumerate(old.demux(video=0)):
            if packet.size:
                content = bytearray(bytes(packet))
                if index in hidden:
                    content[0] &= 0b1110_1111
                changed = av.Packet(bytes(content))
                changed.pts, changed.dts, changed.time_base = (
                    packet.pts,
                    packet.dts,
                    packet.time_base,
                )
                changed.is_keyframe, changed.stream = packet.is_keyframe, stream
                new.mux(changed)
    return to


@pytest.mark.parametrize("name", ["a.webm", "a.ivf"])
def test_pictures_that_are_never_shown_are_no_frames(name: str, tmp_path: Path) -> None:
    whole = numbered.write(tmp_path / "whole.webm", "libvpx", frames=130, options={"g": "30"})
    hidden = {7, 58, 100}
    reader = PyAVReader(hide(whole, hidden, tmp_path / name).read_bytes())
    shown = [number for number in range(130) if number not in hidden]
    assert len(reader) == 127
    for indices in ([0, 7, 60, 126], [8, 125]):
        expected = [shown[index] for index in indices]
        assert numbered.read_all(reader.get_batch(indices).frames) == expected


def test_a_rate_of_a_broadcast_stays_a_fraction(tmp_path: Path) -> None:
    rate = Fraction(30000, 1001)
    path = numbered.write(tmp_path / "a.mkv", "libx264", frames=40, rate=rate)
    assert PyAVReader(str(path)).get_avg_fps() == float(rate)
