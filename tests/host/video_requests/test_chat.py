"""Chat parts about videos, through SGLang's own request class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import HTTPException
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest
from sglang.srt.plugins import load_plugins

from specvlm_sglang.host.video_requests import chat
from specvlm_sglang.host.video_requests.frames import FrameList
from specvlm_sglang.host.video_requests.inputs import VideoInput, read_video
from specvlm_sglang.host.video_requests.options import VideoOptions

HUGE = "x" * 100_000


@pytest.fixture(autouse=True)
def understood() -> Iterator[None]:
    load_plugins()
    chat.install()
    chat.understand()
    yield
    chat.understand(parts=False)


def request(part: dict[str, Any], role: str = "user") -> Any:
    content = [{"type": "text", "text": "What happens?"}, part]
    messages = [{"role": role, "content": content}]
    return ChatCompletionRequest.model_validate({"model": "m", "messages": messages})


def read(part: dict[str, Any], **more: Any) -> VideoInput:
    """What the processor will make of the part."""
    video = request(part, **more).messages[0].content[1]
    assert video.type == "video_url"
    return read_video(video.video_url.url)


@pytest.mark.parametrize("role", ["user", "tool"])
def test_options_beside_the_address_arrive(role: str) -> None:
    part = {"type": "video_url", "video_url": {"url": "a.mp4", "nframes": 4, "min_pixels": 1000}}
    assert read(part, role=role) == VideoInput("a.mp4", VideoOptions(nframes=4, min_pixels=1000))


def test_a_part_of_type_video_is_an_address_or_frames() -> None:
    part = {"type": "video", "video": "a.mp4", "fps": 1}
    assert read(part) == VideoInput("a.mp4", VideoOptions(fps=1))
    part = {"type": "video", "video": ["a", "b"], "times": [0, 2]}
    assert read(part) == VideoInput(FrameList(("a", "b"), times=(0, 2)))


def test_an_address_alone_and_other_parts_are_sglangs() -> None:
    for url in ("a.mp4", ""):
        part = {"type": "video_url", "video_url": {"url": url}}
        assert request(part).messages[0].content[1].video_url.url == url
    image = {"type": "image_url", "image_url": {"url": "a.png"}}
    assert request(image).messages[0].content[1].image_url.url == "a.png"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "video"}, "must be an address or a list of frames"),
        ({"type": "video", "video": {"url": HUGE}}, "must be an address or a list of frames"),
        ({"type": "video_url"}, "a video_url part needs"),
        ({"type": "video_url", "video_url": {"uri": HUGE}}, "a video_url part needs"),
        ({"type": "video_url", "video_url": {"url": {"url": HUGE}}}, "must be a string"),
        ({"type": "video_url", "video_url": {"url": HUGE}, "fps": 2}, "fps stands beside video_u"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_part_without_a_video_is_a_short_refusal(part: dict[str, Any], message: str) -> None:
    with pytest.raises(HTTPException, match=message) as refused:
        request(part)
    assert refused.value.status_code == 400
    assert len(refused.value.detail) < 300


def test_other_families_keep_what_sglang_reads() -> None:
    chat.understand(parts=False)
    part = {"type": "video_url", "video_url": {"url": "a.mp4", "fps": 2, "max_dynamic_patch": 3}}
    video = request(part).messages[0].content[1].video_url
    assert (video.url, video.fps, video.max_dynamic_patch) == ("a.mp4", 2, 3)
