"""The words of refused videos; that they are a 400 is tested in tests/serving."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from sglang.srt.multimodal.processors import qwen_vl
from sglang.srt.utils import common

from specvlm_sglang.host import video_errors
from tests.support import clips
from tests.support.hooks import unhooked

LOADING = ("sglang.srt.utils.common", "_normalize_video_input")
COUNTING = ("sglang.srt.multimodal.processors.qwen_vl", "smart_nframes")


@pytest.fixture(autouse=True)
def hooked() -> Iterator[None]:
    with unhooked(LOADING, COUNTING):
        video_errors.install()
        yield


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("/nowhere/clip.mp4", "no such file"),
        ("/nowhere/clip", "no such file"),  # also good base64
        ("file:///nowhere/clip.mp4", "no such file"),
        ("clip.mp4", "neither a file that the server finds, nor a URL, nor base64"),
        ("ftp://host/clip.mp4", "neither a file"),
        ("data:video/mp4;base64,!!", "a data URL must be base64"),
        ("data:video/mp4", "a data URL must be base64"),
    ],
)
def test_a_source_that_is_nothing_is_named_as_such(source: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        common._normalize_video_input(source)


def test_sources_that_sglang_takes_are_passed_on(tmp_path: Path) -> None:
    clip = clips.write_clip(tmp_path / "a clip.mp4")
    content = clip.read_bytes()
    load = common._normalize_video_input
    assert load(str(clip)) == str(clip)
    assert load(clip.as_uri()) == str(clip)
    assert load(content) == load(clips.data_url(clip)) == content
    assert load(base64.b64encode(content).decode()) == content


def test_base64_that_begins_with_a_slash_is_no_path() -> None:
    content = bytes([0xFF]) * 6000
    encoded = base64.b64encode(content).decode()
    assert encoded.startswith("/")
    assert common._normalize_video_input(encoded) == content


def test_a_refused_connection_keeps_its_own_error() -> None:
    from requests.exceptions import ConnectionError as Refused

    from specvlm_sglang.tools.server import HOST, free_port

    with pytest.raises(Refused):
        common._normalize_video_input(f"http://{HOST}:{free_port()}/clip.mp4")


def test_one_frame_is_too_few_and_two_are_enough() -> None:
    common._normalize_video_input(b"the first video")
    with pytest.raises(ValueError, match="the video has 1 frame; at least 2 are needed"):
        qwen_vl.smart_nframes({}, total_frames=1, video_fps=25.0)
    assert qwen_vl.smart_nframes({}, total_frames=2, video_fps=25.0) == 2
