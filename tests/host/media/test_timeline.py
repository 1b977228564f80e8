"""Time stamps: rates, times, edit lists, several streams, sizes that change."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specvlm_sglang.host.media import timeline
from specvlm_sglang.host.media.reader import PyAVReader
from tests.support import clips, numbered

MILLISECOND = Fraction(1, 1000)


def write_browsers_recording(path: Path, frames: int = 44, gap: int = 250) -> Path:
    """A WebM as a browser's recorder writes it: a frame when one comes, a rate of 1000 claimed."""
    wobble = np.random.default_rng(3).integers(-60, 60, frames)
    wobble[[0, -1]] = 0
    stamps = [int(index * gap + wobble[index]) for index in range(frames)]
    return numbered.write(
        path, "libvpx", frames=frames, rate=1000, stamps=stamps, time_base=MILLISECOND
    )


def test_a_browsers_recording_has_the_rate_of_its_time_stamps(tmp_path: Path) -> None:
    path = write_browsers_recording(tmp_path / "a.webm")
    with av.open(str(path)) as file:
        assert file.streams.video[0].average_rate == 1000, "the file does not claim what it should"
    reader = PyAVReader(str(path))
    assert reader.get_avg_fps() == pytest.approx(4.0)
    assert reader.duration == pytest.approx(11.0)
    assert reader.times([0, 43]) == pytest.approx([0.0, 10.75])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_variable_rate_is_the_average_of_the_time_stamps(name: str, tmp_path: Path) -> None:
    gaps = np.random.default_rng(1).integers(20, 200, 79)
    stamps = [0, *np.cumsum(gaps).tolist()]
    path = numbered.write(
        tmp_path / name, "libx264", frames=80, stamps=stamps, time_base=MILLISECOND
    )
    reader = PyAVReader(str(path))
    assert reader.get_avg_fps() == pytest.approx(79 / (stamps[-1] / 1000), rel=1e-4)
    assert numbered.read_all(reader.get_batch([1, 70, 79]).frames) == [1, 70, 79]
    seen = [stamps[i] / 1000 for i in (1, 70, 79)]
    assert reader.times([1, 70, 79]) == pytest.approx(seen, abs=2e-3)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.flv"])
@pytest.mark.parametrize("start", [-400, 90_000])
def test_time_stamps_may_begin_anywhere(name: str, start: int, tmp_path: Path) -> None:
    stamps = [start + 40 * index for index in range(70)]
    path = numbered.write(
        tmp_path / name,
        "libx264",
        frames=70,
        stamps=stamps,
        time_base=MILLISECOND,
        options={"bf": "2", "g": "10"},
        container_options={"avoid_negative_ts": "disabled"},
    )
    reader = PyAVReader(str(path))
    # Some containers cut what is shown before the time 0.
    numbers = numbered.read_all(reader.get_batch(range(len(reader))).frames)
    assert numbers == list(range(70 - len(reader), 70))
    assert len(reader) >= 60
    assert reader.get_avg_fps() == 25.0
    last = len(reader) - 1
    assert numbered.read_all(reader.get_batch([0, last]).frames) == [numbers[0], 69]


def cut_by_edit_list(path: Path, frames: int) -> bytes:
    """The file with its one edit changed so that it begins ``frames`` later."""
    content = bytearray(path.read_bytes())
    at = content.index(b"elst") + 8
    count, duration, begin = struct.unpack_from(">IIi", content, at)
    assert count == 1
    scale = content.index(b"mdhd") + 4 + 12
    (unit,) = struct.unpack_from(">I", content, scale)
    movie = struct.unpack_from(">I", content, content.index(b"mvhd") + 4 + 12)[0]
    shorter = duration - frames * movie // 25
    struct.pack_into(">Ii", content, at + 4, shorter, begin + frames * unit // 25)
    return bytes(content)


@pytest.mark.parametrize("cut", [3, 10, 37])
def test_an_edit_list_says_where_the_video_begins(cut: int, tmp_path: Path) -> None:
    options = {"bf": "2", "g": "12"}
    path = numbered.write(tmp_path / "a.mp4", "libx264", frames=120, options=options)
    reader = PyAVReader(cut_by_edit_list(path, cut))
    count = len(reader)
    assert count == 120 - cut
    assert numbered.read_all(reader.get_batch([0, 1, count - 1]).frames) == [cut, cut + 1, 119]
    assert reader.get_avg_fps() == 25.0


def write_two_streams(path: Path, dispositions: list[int]) -> Path:
    """Two H.264 streams; the frames of the second begin at 1000."""
    with av.open(str(path), "w") as file:
        streams = []
        for disposition in dispositions:
            stream = file.add_stream("libx264", rate=25, options={"g": "10", "bf": "0"})
            stream.width, stream.height, stream.pix_fmt = numbered.WIDTH, numbered.HEIGHT, "yuv420p"
            stream.disposition = disposition
            streams.append(stream)
        for index in range(20):
            for first, stream in zip((0, 1000), streams, strict=True):
                picture = numbered.draw(first + index)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            file.mux(stream.encode())
    return path


DEFAULT, COVER = int(av.stream.Disposition.default), int(av.stream.Disposition.attached_pic)


@pytest.mark.parametrize(
    ("dispositions", "first"),
    [([DEFAULT, 0], 0), ([0, DEFAULT], 1000), ([0, 0], 0), ([DEFAULT, DEFAULT], 0)],
)
def test_of_several_streams_the_default_one_is_read(
    dispositions: list[int], first: int, tmp_path: Path
) -> None:
    reader = PyAVReader(str(write_two_streams(tmp_path / "a.mkv", dispositions)))
    assert numbered.read_all(reader.get_batch([0, 19]).frames) == [first, first + 19]


def write_song_with_cover(path: Path) -> Path:
    """An mp3 whose only picture is a cover."""
    with av.open(str(path), "w", format="mp3", options={"id3v2_version": "3"}) as file:
        sound = file.add_stream("mp3", rate=44100, layout="mono")
        cover = file.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "rgb24"
        cover.disposition = COVER
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        file.mux(cover.encode(picture))
        file.mux(cover.encode())
        for index in range(40):
            silence = np.zeros((1, 1152), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, index * 1152
            file.mux(sound.encode(frame))
        file.mux(sound.encode())
    return path


def test_a_song_with_a_cover_is_called_sound(tmp_path: Path) -> None:
    path = write_song_with_cover(tmp_path / "a.mp3")
    with pytest.raises(ValueError, match="the file has only a cover picture: it is sound"):
        PyAVReader(str(path))
    with pytest.raises(ValueError, match="the file has no video stream: it is sound"):
        PyAVReader(str(clips.write_sound_only(tmp_path / "sound.mp4")))


@pytest.mark.parametrize(("first", "second"), [((64, 128), (96, 160)), ((96, 160), (64, 128))])
@pytest.mark.parametrize("suffix", ["ts", "h264", "mkv"])
def test_a_size_that_changes_inside_a_stream_becomes_the_first(
    suffix: str, first: tuple[int, int], second: tuple[int, int], tmp_path: Path
) -> None:
    parts = [
        numbered.write(
            tmp_path / f"{index}.{'ts' if suffix == 'ts' else 'h264'}",
            "libx264",
            frames=60,
            first=index * 60,
            height=height,
            width=width,
            options={"g": "20", "bf": "0"},
        )
        for index, (height, width) in enumerate((first, second))
    ]
    joined = b"".join(part.read_bytes() for part in parts)
    content = rewrapped(joined, tmp_path / "a.mkv") if suffix == "mkv" else joined
    reader = PyAVReader(content)
    assert len(reader) == 120
    frames = reader.get_batch([0, 59, 60, 119]).frames
    assert frames.shape == (4, *first, 3)
    assert numbered.read_all(frames) == [0, 59, 60, 119]
    assert numbered.read(reader[119]) == 119


def rewrapped(bare: bytes, path: Path) -> bytes:
    """Bare H.264 in Matroska, not encoded again."""
    source = path.with_suffix(".h264")
    source.write_bytes(bare)
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for index, packet in enumerate(old.demux(video=0)):
            if packet.size:
                packet.stream = stream
                packet.time_base = Fraction(1, 25)
                packet.pts = packet.dts = index
                new.mux(packet)
    return path.read_bytes()


def test_frames_without_times_are_numbered_and_timed_by_the_rate(tmp_path: Path) -> None:
    path = numbered.write(tmp_path / "a.h264", "libx264", frames=50, options={"bf": "2"})
    reader = PyAVReader(str(path))
    assert set(reader._timeline.stamps) == {None}
    assert reader.times([0, 25]) == [0.0, 1.0]
    assert reader.duration == 2.0


@pytest.mark.parametrize(
    ("stamps", "declared", "rate"),
    [
        ([0, 40, 80], Fraction(25), 25.0),
        ([0, 33, 67, 100], Fraction(30), 30.0),
        ([0, 33, 67, 100], Fraction(1000), 30.0),
        ([0, 33, 67, 100], None, 30.0),
        ([None, 33, None, 100], None, 2 / 0.067),
        ([0, 80, 40], Fraction(12), 12.0),
        ([0, 0, 0], Fraction(12), 12.0),
        ([5], Fraction(12), 12.0),
        ([5], None, timeline.ASSUMED_RATE),
        ([None, None], Fraction(0), timeline.ASSUMED_RATE),
    ],
)
def test_a_rate_is_the_time_stamps_and_the_headers_only_where_they_cannot_tell(
    stamps: list[int | None], declared: Fraction | None, rate: float
) -> None:
    assert timeline.average_rate(stamps, MILLISECOND, declared) == pytest.approx(rate)


@given(
    stamps=st.lists(st.none() | st.integers(-(2**62), 2**62), max_size=8),
    declared=st.none() | st.fractions(-10, 10),
)
def test_any_time_stamps_give_a_rate_above_zero(
    stamps: list[int | None], declared: Fraction | None
) -> None:
    assert timeline.average_rate(stamps, MILLISECOND, declared) > 0


def test_pictures_are_never_taken_from_a_stream_of_thumbnails(tmp_path: Path) -> None:
    thumbnails = int(av.stream.Disposition.timed_thumbnails)
    path = write_two_streams(tmp_path / "a.mp4", [0, 0])

    def choose(flags: list[int]) -> Any:
        from types import SimpleNamespace

        from specvlm_sglang.host.media import reader

        streams = [
            SimpleNamespace(disposition=av.stream.Disposition(flag), codec_context=object())
            for flag in flags
        ]
        container = SimpleNamespace(streams=SimpleNamespace(video=streams))
        return streams.index(reader._video_stream(container))

    # The muxers here cannot write this disposition, so streams of that kind stand in.
    assert choose([thumbnails | DEFAULT, 0]) == 1
    assert choose([COVER, DEFAULT]) == 1
    assert path.exists()


@pytest.mark.parametrize(
    ("head", "tail", "hidden"),
    [
        (0b1000_0010, 0, False),  # a key frame that is shown
        (0b1000_0110, 0, False),  # another frame that is shown
        (0b1000_0100, 0, True),
        (0b1000_1000, 0, False),  # shows a frame that was decoded before
        (0b1000_0100, 0b1100_0001, False),  # several in one packet, the last of which is shown
        (0b1011_0001, 0, False),  # profile 3 has one more bit
        (0b1011_0010, 0, True),
        (0b1011_0100, 0, False),
    ],
)
def test_a_vp9_packet_says_whether_it_shows_a_picture(head: int, tail: int, hidden: bool) -> None:
    assert timeline._is_hidden(bytes([head, 0, 0, tail]), "vp9") == hidden
    assert not timeline._is_hidden(bytes([head, 0, 0, tail]), "h264")
