"""PyAV behind SGLang's video decoder: the right frames, and a clear word about broken files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sglang.srt.utils import video_decoder
from sglang.srt.utils.common import load_video

from specvlm_sglang.host import video
from specvlm_sglang.host.video import MAX_DECODED_BYTES_VARIABLE, PyAVReader
from tests.support import clips
from tests.support.hooks import unhooked

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
    cut._time_stamps = reader._time_stamps
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
    with pytest.raises(ValueError, match=r"3 frames of 128 x 96 pixels decode to 110592 bytes; .*"):
        reader.get_batch(range(frames))


def test_absurd_dimensions_are_refused_by_their_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = PyAVReader(str(clips.write_clip(tmp_path / "clip.mp4")))
    reader._height = reader._width = 60_000
    with pytest.raises(ValueError, match=f"60000 x 60000 .*{MAX_DECODED_BYTES_VARIABLE}"):
        reader[0]


@pytest.fixture
def wrapper(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """SGLang's wrapper on a machine whose torchcodec finds no FFmpeg."""
    monkeypatch.setattr(video, "torchcodec_works", lambda: False)
    monkeypatch.setattr(video_decoder, "_BACKEND", "torchcodec")
    with unhooked(("sglang.srt.utils.video_decoder", "VideoDecoderWrapper.__init__")):
        video.install()
        yield video_decoder.VideoDecoderWrapper


@pytest.mark.parametrize("as_bytes", [False, True], ids=["path", "bytes"])
def test_sglangs_wrapper_reads_frames_rate_and_shape_through_pyav(
    wrapper: type, as_bytes: bool, encoded: tuple[Path, np.ndarray]
) -> None:
    path, frames = encoded
    with wrapper(path.read_bytes() if as_bytes else str(path)) as decoder:
        assert isinstance(decoder._decoder, PyAVReader)
        assert len(decoder) == FRAMES
        assert decoder.avg_fps == 25.0
        assert decoder.frame_shape == (48, 64)
        assert decoder.source_bytes == path.read_bytes()
        np.testing.assert_array_equal(decoder[9], frames[9])
        np.testing.assert_array_equal(decoder.get_frames_at([90, 4]), frames[[90, 4]])


def test_sglang_loads_files_and_data_urls_with_it(wrapper: type, clip_paths: list[Path]) -> None:
    path = clip_paths[0]
    frames = sequential(path)
    for source in (str(path), clips.data_url(path), path.read_bytes()):
        decoder = load_video(source, use_gpu=False)
        assert isinstance(decoder, wrapper)
        np.testing.assert_array_equal(decoder.get_frames_at([0, 11]), frames[[0, 11]])


def test_a_broken_file_reaches_sglang_as_a_value_error(wrapper: type, tmp_path: Path) -> None:
    path = clips.write_text_file(tmp_path / "text.mp4")
    with pytest.raises(ValueError, match="not a readable video file"):
        wrapper(str(path))


def test_where_torchcodec_works_sglangs_own_decoder_stays(
    wrapper: type, monkeypatch: pytest.MonkeyPatch, clip_paths: list[Path]
) -> None:
    given = []
    monkeypatch.setattr(video, "torchcodec_works", lambda: True)
    monkeypatch.setattr(
        video_decoder,
        "VideoDecoder",
        lambda source, **options: given.append(source) or SimpleNamespace(),
        raising=False,
    )
    decoder = wrapper(str(clip_paths[0]))
    assert given == [str(clip_paths[0])]
    assert not isinstance(decoder._decoder, PyAVReader)
    assert video_decoder._BACKEND == "torchcodec"
