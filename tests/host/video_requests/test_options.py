"""Options of a video: ranges, and which place wins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from specvlm_sglang.host.video_requests.options import (
    NAMES,
    NOTHING_SET,
    RANGES,
    VideoOptions,
    options_of,
    read_options,
)


def test_every_option_has_a_range() -> None:
    assert set(RANGES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_value_is_taken_to_the_ends_of_its_range_and_not_beyond(name: str) -> None:
    whole, low, high = RANGES[name]
    for value in (low, high) if whole else (low + 1e-6, high):
        assert getattr(VideoOptions(**{name: value}), name) == value
    for value in (low - 1 if whole else low, high + 1, -1, float("nan"), "2", True, [2], {}):
        with pytest.raises(ValueError, match=f"^{name}=.* must be "):
            VideoOptions(**{name: value})
    with pytest.raises(ValueError, match=str(RANGES[name])):
        VideoOptions(**{name: 10**18})


@pytest.mark.parametrize("name", [name for name in NAMES if RANGES[name].whole])
def test_counts_are_integers(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=1000.5 must be an integer from"):
        VideoOptions(**{name: 1000.5})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 2, "nframes": 4}, "fps=2 and nframes=4 exclude each other"),
        ({"min_frames": 4, "max_frames": 3}, "min_frames=4 must be at most max_frames=3"),
        ({"min_pixels": 2000, "max_pixels": 1000}, "min_pixels=2000 must be at most"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_both_named(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        VideoOptions(**options)


@pytest.mark.parametrize(
    ("near", "far", "merged"),
    [
        ({}, {"fps": 1, "max_frames": 8}, {"fps": 1, "max_frames": 8}),
        ({"fps": 2}, {"fps": 1, "max_frames": 8}, {"fps": 2, "max_frames": 8}),
        ({"fps": 2}, {"nframes": 6, "max_pixels": 1000}, {"fps": 2, "max_pixels": 1000}),
        ({"nframes": 6}, {"fps": 2, "min_frames": 4}, {"nframes": 6, "min_frames": 4}),
        ({"max_frames": 3}, {"min_frames": 4}, {"max_frames": 3, "min_frames": 3}),
        ({"max_pixels": 900}, {"min_pixels": 1000}, {"max_pixels": 900, "min_pixels": 900}),
        ({"max_frames": 5}, {"nframes": 20}, {"nframes": 5, "max_frames": 5}),
        ({"min_frames": 5}, {"nframes": 2}, {"nframes": 5, "min_frames": 5}),
        ({"nframes": 20}, {"max_frames": 5}, {"nframes": 20, "max_frames": 5}),
        ({"max_frames": 9}, {"min_frames": 4}, {"max_frames": 9, "min_frames": 4}),
    ],
    ids=str,
)
def test_the_nearer_place_wins(
    near: dict[str, Any], far: dict[str, Any], merged: dict[str, Any]
) -> None:
    assert VideoOptions(**near).merged_over(VideoOptions(**far)) == VideoOptions(**merged)


def test_a_nearer_minimum_above_a_farther_maximum_is_refused() -> None:
    with pytest.raises(ValueError, match="min_frames=40 must be at most max_frames=32"):
        VideoOptions(min_frames=40).merged_over(VideoOptions(max_frames=32))


def test_notes_of_sglang_and_what_is_null_are_passed_over() -> None:
    assert read_options({"_question": "Why?", "fps": None}, "video_config") == NOTHING_SET
    assert read_options(None, "video_config") == NOTHING_SET


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_pixel": 9}, "video_config has no field 'max_pixel'; it takes fps, nframes, min_f"),
        ({"fps": -1}, "video_config: fps=-1 must be a number above 0, at most 1000"),
        ({"nframes": 9, "max_frames": 5}, "nframes=9 must be at most max_frames=5"),
        ({"nframes": 2, "min_frames": 5}, "nframes=2 must be at least min_frames=5"),
        ([1], r"video_config=\[1\] must be an object"),
    ],
    ids=str,
)
def test_what_cannot_be_read_names_its_place(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_options(given, "video_config")


def test_messages_stay_short_whatever_was_sent() -> None:
    for given in ({"x" * 100_000: 1}, {"fps": "y" * 100_000}, "z" * 100_000):
        with pytest.raises(ValueError, match="video_config") as refused:
            read_options(given, "video_config")
        assert len(str(refused.value)) < 300


def test_other_settings_of_the_server_are_left_to_sglang() -> None:
    given = {"fps": 1, "resized_height": 56}
    assert read_options(given, "--mm-process-config video", strict=False) == VideoOptions(fps=1)


def test_a_requests_config_is_nearer_than_its_processor_settings_and_the_server() -> None:
    server = VideoOptions(nframes=8, max_pixels=5000)
    request = SimpleNamespace(video_config=None, mm_processor_kwargs=None)
    assert options_of(request, server) == server
    request.mm_processor_kwargs = {"fps": 1, "max_pixels": 4000}
    assert options_of(request, server) == VideoOptions(fps=1, max_pixels=4000)
    request.video_config = {"nframes": 2}
    assert options_of(request, server) == VideoOptions(nframes=2, max_pixels=4000)
