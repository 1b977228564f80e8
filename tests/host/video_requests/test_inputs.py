"""One video of a request, in every form that a client may send."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.utils.common import VideoData

from specvlm_sglang.host.video_requests.frames import FrameList
from specvlm_sglang.host.video_requests.inputs import (
    PREFIX,
    VideoInput,
    encode,
    read_video,
    read_videos,
)
from specvlm_sglang.host.video_requests.options import NOTHING_SET, VideoOptions

TWO = FrameList(("a.png", "b.png"))
JPEGS = "data:video/jpeg;base64,AAAA,BBBB"


@pytest.mark.parametrize("url", ["clip.mp4", "", "line\nbreak", "data:video/mp4;base64,AAAA"])
def test_an_address_alone_is_not_encoded(url: str) -> None:
    assert encode({"url": url, "fps": None}) == url
    assert read_video(url) == VideoInput(url)


@pytest.mark.parametrize("url", ["clip.mp4", "", "line\nbreak", PREFIX, "x" * 100_000])
def test_options_travel_beside_any_address(url: str) -> None:
    sent = encode({"url": url, "fps": 2, "max_pixels": 1000})
    assert sent.startswith(PREFIX)
    assert read_video(sent) == VideoInput(url, VideoOptions(fps=2, max_pixels=1000))


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"url": "a.mp4", "nframes": 4}, VideoInput("a.mp4", VideoOptions(nframes=4))),
        # As SGLang's schema of /generate calls them.
        ({"url": "a", "num_frames": 4}, VideoInput("a", VideoOptions(nframes=4))),
        ({"url": "a", "total_max_pixels": 999}, VideoInput("a", VideoOptions(total_pixels=999))),
        (VideoData("a", {"fps": 1}), VideoInput("a", VideoOptions(fps=1))),
        (VideoData("a"), VideoInput("a")),
        (["a.png", "b.png"], VideoInput(TWO)),
        ({"video": ["a.png", "b.png"], "fps": 4}, VideoInput(FrameList(("a.png", "b.png"), 4))),
        (
            encode({"video": ["a.png", "b.png"], "times": [0, 1.5]}),
            VideoInput(FrameList(("a.png", "b.png"), times=(0, 1.5))),
        ),
        (
            JPEGS,
            VideoInput(FrameList(("data:image/jpeg;base64,AAAA", "data:image/jpeg;base64,BBBB"))),
        ),
        (b"bytes", VideoInput(b"bytes")),
    ],
    ids=str,
)
def test_every_form_is_read(entry: Any, expected: VideoInput) -> None:
    assert read_video(entry) == expected


def test_a_list_as_a_data_url_may_have_options_and_any_case() -> None:
    url = JPEGS.replace("video/jpeg;base64", "VIDEO/JPEG;Base64").replace("data", "Data")
    read = read_video(encode({"url": url, "fps": 3}))
    assert read == VideoInput(replace(read_video(JPEGS).source, rate=3))


def test_pixels_and_what_a_processor_made_are_passed_on() -> None:
    pixels = torch.zeros(2, 3, 28, 28)
    for entry in (pixels, [pixels[0], pixels[1]], {"format": "processor_output"}):
        assert read_video(entry).source is entry


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"url": "a", "frames": 4}, "the video has no field 'frames'; it takes url, video, times"),
        ({"url": "a", "fps": 0}, "the video: fps=0 must be"),
        ({"fps": 1}, "either a url or a list"),
        ({"url": "a", "video": ["a"]}, "either a url or a list"),
        ({"url": 7}, "url=7 must be a string"),
        ({"url": "a", "times": [0, 1]}, "times belong to a list of frames"),
        ({"video": ["a", "b"], "times": [0]}, "times has 1 entries for 2 frames"),
        ({"video": ["a", "b"], "times": [1, 1]}, r"times\[1\]=1 must be seconds from 0"),
        ({"video": ["a", "b"], "times": [-1, 1]}, r"times\[0\]=-1 must be seconds from 0"),
        ({"video": ["a", "b"], "times": "01"}, "times='01' must be a list"),
        ({"video": ["a", "b"], "times": [0, 1], "fps": 1}, "fps and times .* exclude each other"),
        ({"video": []}, "a list of frames is empty"),
        ({"video": ["a", 7]}, "frame 1 of a list is 7"),
        ([["a"], ["b"]], r"frame 0 of a list is \['a'\]"),
        ("data:video/jpeg,AAAA", "must be followed by ;base64"),
        ("data:video/jpeg;base64,", "must be followed by ;base64"),
        (f"{PREFIX}{{", "is no video"),
        (f"{PREFIX}[1]", "is no video"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused(entry: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_video(entry)


def test_a_lists_own_options_choose_its_frames_and_others_only_its_rate() -> None:
    request = SimpleNamespace(
        video_config={"nframes": 2, "max_pixels": 1000},
        mm_processor_kwargs=None,
        video_data=[
            [f"{index}.png" for index in range(9)],
            {"video": [f"{index}.png" for index in range(9)], "nframes": 3, "fps": 1},
            {"video": [f"{index}.png" for index in range(9)], "max_frames": 20, "fps": 4},
            "clip.mp4",
        ],
    )
    videos = read_videos(request, NOTHING_SET)
    whole, three, rated, (clip, options) = videos
    assert len(whole[0].pictures) == 9
    assert whole[0].times[:3] == (0, 0.5, 1)
    assert three[0].pictures == ("0.png", "4.png", "8.png")
    assert three[0].times == (0, 4, 8)
    assert len(rated[0].pictures) == 9
    assert rated[0].times[-1] == 2
    assert (clip, options) == ("clip.mp4", VideoOptions(nframes=2, max_pixels=1000))


def test_a_list_has_a_limit_that_its_options_can_keep() -> None:
    long = {"video": ["a.png"] * 769}
    for asked, refused in ((long, True), ({**long, "nframes": 768}, False)):
        request = SimpleNamespace(video_config=None, mm_processor_kwargs=None, video_data=[asked])
        if refused:
            with pytest.raises(ValueError, match=r"769 frames: at most 768 are taken\."):
                read_videos(request, NOTHING_SET)
        else:
            assert len(read_videos(request, NOTHING_SET)[0][0].pictures) == 768
