"""Which frames of a file are taken."""

from __future__ import annotations

from typing import Any

import pytest

from specvlm_sglang.host.video_requests.options import OF_PIXELS, VideoOptions
from specvlm_sglang.models.native.llava_onevision.frames import (
    DEFAULTS,
    check_no_pixels,
    frame_indices,
)


@pytest.mark.parametrize(
    ("settings", "total", "rate", "expected"),
    [
        ({}, 12, 6.0, [0, 3, 7, 11]),
        # Two a second within limits: at least 4, at most 32.
        ({}, 30, 30.0, [0, 9, 19, 29]),
        ({}, 3, 30.0, [0, 1, 2]),
        ({}, 1, 30.0, [0]),
        ({"fps": 1}, 60, 10.0, [0, 11, 23, 35, 47, 59]),
        ({"max_frames": 3}, 600, 10.0, [0, 299, 599]),
        ({"nframes": 2}, 600, 10.0, [0, 599]),
        ({"nframes": 99}, 4, 10.0, [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_frames_lie_evenly_between_the_first_and_the_last(
    settings: dict[str, Any], total: int, rate: float, expected: list[int]
) -> None:
    options = VideoOptions(**settings).merged_over(DEFAULTS)
    assert frame_indices(options, total, rate) == expected


def test_long_files_and_files_without_a_rate_give_the_training_maximum() -> None:
    assert len(frame_indices(DEFAULTS, 10_000, 25.0)) == 32
    assert len(frame_indices(DEFAULTS, 10_000, 0.0)) == 32


def test_a_minimum_above_the_training_maximum_is_refused() -> None:
    with pytest.raises(ValueError, match="min_frames=40 must be at most max_frames=32"):
        VideoOptions(min_frames=40).merged_over(DEFAULTS)


@pytest.mark.parametrize("name", OF_PIXELS)
def test_the_size_of_a_frame_cannot_be_chosen(name: str) -> None:
    check_no_pixels(DEFAULTS)
    with pytest.raises(ValueError, match=f"{name}=10000 does not work with LLaVA-OneVision"):
        check_no_pixels(VideoOptions(**{name: 10_000}))
