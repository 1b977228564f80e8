"""The reader of H.264 in mp4: any frames in any order, limits, broken files, receipts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specvlm_sglang.host.media import formats
from specvlm_sglang.host.media.picture import MAX_DECODED_BYTES_VARIABLE
from specvlm_sglang.host.media.reader import PyAVReader
from tests.support import clips

FRAMES = 130
# More than 48 frames lie between two key frames, and between wanted frames: it must seek.
ENCODINGS = {
    "short GOPs": {"g": "10", "bf": "0"},
    "B-frames": {"g": "25", "bf": "3", "b_strategy": "0"},
    "one long GOP with B-frames": {"g": "1000", "keyint_min": "1000", "bf": "2"},
    "open GOPs": {"g": "20", "bf": "3", "x264-params": "open-gop=1"},
}


def encode(path: Path, options: dict[str, str], frames: int = FRAMES) -> Path:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "20", **options})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.thread_count = 1
        for image in clips.draw(seed=5, frames=frames, height=48, width=64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def sequential(path: Path) -> np.ndarray:
    """Every frame, decoded from the start in one go."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module", params=ENCODINGS)
def encoded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, np.ndarray]:
    path = encode(tmp_path_factory.mktemp("video") / "clip.mp4", ENCODINGS[request.param])
    return path, sequential(path)


def test_the_clips_have_frames_that_are_stored_out_of_order(tmp_path: Path) -> None:
    def stored(name: str) -> list[int]:
        path = encode(tmp_path / f"{name}.mp4", ENCODINGS[name], frames=30)
        with av.open(str(path)) as container:
            return [packet.pts for packet in container.demux(video=0) if packet.pts is not None]

    plain, reordered = stored("short GOPs"), stored("B-frames")
    assert plain == sorted(plain)
    assert reordered != sorted(reordered)


ORDERS = {
    "all": list(range(FRAMES)),
    "the first": [0],
    "the last": [FRAMES - 1],
    "both ends": [0, FRAMES - 1],
    "back and forth": [100, 3, 60],
    "repeats": [7, 7, 7],
    "negative indices": [-1, 0, -FRAMES, 5],
    "evenly spaced": list(range(0, FRAMES, 13)),
    "backwards": list(range(FRAMES - 1, -1, -9)),
    "far apart": [1, 51, 101],
    "neighbours": [120, 121, 122],
}


@pytest.mark.parametrize("order", ORDERS)
def test_any_frames_in_any_order_equal_sequential_decoding(
    encoded: tuple[Path, np.ndarray], order: str
) -> None:
    path, frames = encoded
    indices = ORDERS[order]
    found = PyAVReader(str(path)).get_batch(indices).asnumpy()
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, frames[indices])


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(indices=st.lists(st.integers(-FRAMES, FRAMES - 1), min_size=1, max_size=6))
def test_random_frames_equal_sequential_decoding(
    encoded: tuple[Path, np.ndarray], indices: list[int]
) -> None:
    path, frames = encoded
    found = PyAVReader(path.read_bytes()).get_batch(indices).asnumpy()
    np.testing.assert_array_equal(found, frames[indices])


def test_length_rate_and_single_frames_are_the_files(encoded: tuple[Path, np.ndarray]) -> None:
    path, frames = encoded
    reader = PyAVReader(str(path))
    assert len(reader) == len(frames) == FRAMES
    assert reader.get_avg_fps() == 25.0
    np.testing.assert_array_equal(reader[64], frames[64])
    np.testing.assert_array_equal(reader[-2], frames[-2])


@pytest.mark.parametrize("index", [FRAMES, -FRAMES - 1])
def test_a_frame_outside_the_video_is_an_index_error(
    encoded: tuple[Path, np.ndarray], index: int
) -> None:
    with pytest.raises(IndexError, match=f"frame {index} is outside the video's {FRAMES} frames"):
        PyAVReader(str(encoded[0]))[index]


BROKEN = [
    (clips.write_truncated_clip, "not a readable video file"),
    (clips.write_empty_file, "not a readable video file"),
    (clips.write_text_file, "not a readable video file"),
    (clips.write_sound_only, "no video stream"),
    (clips.write_clip_without_frames, "no frames"),
]


@pytest.mark.parametrize("as_bytes", [False, True], ids=["path", "bytes"])
@pytest.mark.parametrize(("write", "message"), BROKEN)
def test_a_broken_file_is_refused_with_what_is_wrong(
    write: Callable[[Path], Path], message: str, as_bytes: bool, tmp_path: Path
) -> None:
    path = write(tmp_path / "broken.mp4")
    with pytest.raises(ValueError, match=message):
        PyAVReader(path.read_bytes() if as_bytes else str(path))


def test_a_missing_file_is_reported_as_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PyAVReader(str(tmp_path / "nowhere.mp4"))


def test_a_clip_of_one_frame_has_one_frame(tmp_path: Path) -> None:
    reader = PyAVReader(str(clips.write_one_frame_clip(tmp_path / "one.mp4")))
    assert len(reader) == 1
    assert reader.get_batch([0, -1]).asnumpy().shape == (2, 96, 128, 3)


def test_frames_that_the_index_promises_and_the_file_lacks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    # The index comes first, so that a cut takes frames only.
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0", "g": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in clips.draw(seed=1, frames=60, height=48, width=64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    content = path.read_bytes()
    reader = PyAVReader(content)
    path.write_bytes(content[: len(content) * 2 // 3])
    cut = PyAVReader(str(path))
    np.testing.assert_array_equal(cut[3], reader[3])
    # As the file was when it was opened; a cut one says so instead of repeating a frame.
    cut._timeline = reader._timeline
    with pytest.raises(ValueError, match="cannot be decoded"):
        cut[59]


@pytest.mark.parametrize(("frames", "fits"), [(2, True), (3, False)])
def test_more_decoded_bytes_than_the_limit_are_refused_before_decoding(
    frames: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = PyAVReader(str(clips.write_clip(tmp_path / "clip.mp4")))
    monkeypatch.setenv(MAX_DECODED_BYTES_VARIABLE, str(2 * 96 * 128 * 3))
    if fits:
        assert len(reader.get_batch(range(frames)).frames) == frames
        return
    monkeypatch.setattr(reader, "_decode", lambda wanted: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"3 frames of 128 x 96 pixels: 110592 bytes; .*"):
        reader.get_batch(range(frames))


def test_absurd_dimensions_are_refused_by_their_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = PyAVReader(str(clips.write_clip(tmp_path / "clip.mp4")))
    reader.height = reader.width = 60_000
    with pytest.raises(ValueError, match=f"60000 x 60000 .*{MAX_DECODED_BYTES_VARIABLE}"):
        reader[0]


@pytest.mark.parametrize("index", [0, 5])
def test_a_stored_picture_beyond_the_limit_is_refused_before_it_is_decoded(
    index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clips.write_clip(tmp_path / "clip.mp4")
    reader = PyAVReader(str(path))
    monkeypatch.setenv(MAX_DECODED_BYTES_VARIABLE, str(96 * 128 * 3 - 1))
    with pytest.raises(ValueError, match=r"1 frame of 128 x 96 pixels: 36864 bytes"):
        PyAVReader(str(path))
    with pytest.raises(ValueError, match="the limit is"):
        list(reader.pictures([index]))


@pytest.mark.parametrize("limit", [1 << 31, 1 << 40])
def test_a_limit_beyond_what_ffmpeg_can_count_is_no_error(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MAX_DECODED_BYTES_VARIABLE, str(limit))
    assert len(PyAVReader(str(clips.write_clip(tmp_path / "clip.mp4")))) == 12


def test_many_frames_are_read_one_by_one_where_together_they_would_exceed_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MAX_DECODED_BYTES_VARIABLE, str(96 * 128 * 3))
    reader = PyAVReader(str(clips.write_clip(tmp_path / "clip.mp4")))
    assert [index for index, _ in reader.pictures(range(12))] == list(range(12))
    with pytest.raises(ValueError, match="12 frames"):
        reader.get_batch(range(12))


def test_the_reader_says_what_it_reads(tmp_path: Path) -> None:
    reader = PyAVReader(str(clips.write_clip(tmp_path / "clip.mp4", frames=12, fps=6)))
    assert (reader.container, reader.codec) == ("mov,mp4,m4a,3gp,3g2,mj2", "h264")
    assert (reader.height, reader.width, reader.duration) == (96, 128, 2.0)
    assert reader.times([11, 0, 6]) == [11 / 6, 0.0, 1.0]


def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="a directory, a pipe or a device"):
            PyAVReader(str(path))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1/a.ts\n", "playlists, session descriptions"),
        (b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\n", "playlists, session descriptions"),
        (b"ffconcat version 1.0\nfile a.mp4\n", "playlists, session descriptions"),
        (b"<?xml version='1.0'?><MPD/>", "playlists, session descriptions"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "send it as an image"),
    ],
)
def test_what_is_no_video_is_named(content: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=f"not a readable video file .*{says}"):
        PyAVReader(content)


def test_a_picture_is_sent_back_as_a_picture(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff"):
        with pytest.raises(ValueError, match="send it as an image"):
            PyAVReader(str(clips.write_image(tmp_path / name)))


def test_a_kind_of_file_that_is_not_on_the_list_is_named_as_such() -> None:
    sami = b"<SAMI><HEAD><TITLE>x</TITLE></HEAD><BODY><SYNC Start=0><P>x</BODY></SAMI>"
    with pytest.raises(ValueError, match="this kind of file is not read; mp4, mov"):
        PyAVReader(sami)
    assert "sami" not in formats.VIDEO_FORMATS
