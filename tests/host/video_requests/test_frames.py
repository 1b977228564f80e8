"""Lists of frames: loaded by SGLang's own loader, one size, in order."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sglang.srt.utils import common

from specvlm_sglang.host.media.picture import MAX_DECODED_BYTES_VARIABLE
from specvlm_sglang.host.video_requests import frames, receipt
from specvlm_sglang.host.video_requests.frames import FrameList, FrameReader
from specvlm_sglang.host.video_requests.options import NOTHING_SET
from specvlm_sglang.tools.server import HOST, free_port
from tests.support import clips
from tests.support.hooks import unhooked


@pytest.fixture(autouse=True)
def hooked() -> Iterator[None]:
    with unhooked(("sglang.srt.utils.common", "load_video")):
        frames.install()
        yield


def load(*pictures: Any, times: tuple[float, ...] | None = None) -> FrameReader:
    """As SGLang's processors do."""
    chosen = FrameList(pictures, times=times).with_options(NOTHING_SET, NOTHING_SET)
    found: FrameReader = common.load_video(chosen, use_gpu=False)
    return found


def jpeg(path: Path) -> str:
    """A picture as the base64 of a JPEG file."""
    file = io.BytesIO()
    Image.open(path).convert("RGB").save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


def test_each_frame_may_have_any_form_of_an_image(image_paths: list[Path]) -> None:
    first, second, third, fourth = image_paths
    png = base64.b64encode(second.read_bytes()).decode()
    reader = load(str(first), png, third.as_uri(), clips.data_url(fourth), first.read_bytes())
    expected = [np.asarray(Image.open(path)) for path in (*image_paths, first)]
    assert np.array_equal(reader.get_frames_at(range(5)), np.stack(expected))
    assert reader.get_frames_as_tensor([2])[0].numpy().tolist() == expected[2].tolist()


def test_base64_of_a_jpeg_is_no_path(image_paths: list[Path]) -> None:
    encoded = jpeg(image_paths[0])
    assert encoded.startswith("/9j/")
    assert load(encoded, encoded)[0].shape == (96, 128, 3)


def test_other_videos_are_loaded_as_before(clip_paths: list[Path]) -> None:
    assert len(common.load_video(str(clip_paths[0]), use_gpu=False)) == 12


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        ("/nowhere/frame.png", "frame 1 of the list: the server finds no such file"),
        ("file:///nowhere/frame.png", "frame 1 of the list: the server finds no such file"),
        ("frame.png", "frame 1 of the list: "),
        (f"http://{HOST}:{{port}}/frame.png", "frame 1 of the list: .*Connection refused|frame 1"),
        ("data:image/png;base64,AAAA", "frame 1 of the list: Could not decode image"),
        ("!" * 100_000, "frame 1 of the list: "),
    ],
)
def test_a_frame_that_cannot_be_loaded_is_named(
    image_paths: list[Path], picture: str, says: str
) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        load(str(image_paths[0]), picture.format(port=free_port()))
    assert len(str(refused.value)) < 300


def test_the_servers_rules_for_addresses_hold(image_paths: list[Path]) -> None:
    common.configure_media_url_security(["example.org"])
    try:
        with pytest.raises(ValueError, match=r"frame 1 .* domain is not allowed"):
            load(str(image_paths[0]), "https://elsewhere.org/frame.png")
    finally:
        common.configure_media_url_security()


def test_frames_have_one_size(image_paths: list[Path], tmp_path: Path) -> None:
    other = clips.write_image(tmp_path / "other.png", height=64, width=64)
    with pytest.raises(ValueError, match="frame 1 has 64 x 64 pixels and frame 0 has 128 x 96"):
        load(str(image_paths[0]), str(other))


def test_their_bytes_are_limited_before_the_second_is_loaded(
    image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MAX_DECODED_BYTES_VARIABLE, "100000")
    with pytest.raises(ValueError, match="3 frames of 128 x 96 pixels: 110592 bytes"):
        load(str(image_paths[0]), "/nowhere.png", "/nowhere.png")


def test_the_rate_is_that_of_the_times(image_paths: list[Path]) -> None:
    paths = [str(path) for path in image_paths]
    assert load(*paths).avg_fps == pytest.approx(2)
    reader = load(*paths, times=(1, 2, 3, 7))
    assert reader.avg_fps == pytest.approx(0.5)
    source = receipt.describe(reader, range(4))
    assert source == receipt.Source("frames", 8.0, 4, 4, [1, 2, 3, 7])


def test_an_odd_number_becomes_pairs_by_repeating_the_last(image_paths: list[Path]) -> None:
    reader = load(*(str(path) for path in image_paths[:3]))
    pairs = reader.in_pairs()
    assert len(pairs) == 4
    assert np.array_equal(pairs[2], pairs[3])
    assert receipt.describe(pairs, range(4)) == receipt.describe(reader, range(3))
    assert pairs.in_pairs() is pairs
