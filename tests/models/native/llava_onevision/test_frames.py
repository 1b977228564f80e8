"""Which frames of a file are taken."""

from __future__ import annotations

from typing import Any

import pytest

from specvlm_sglang.models.native.llava_onevision.frames import FrameSampling


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
    assert FrameSampling().with_settings(settings).indices(total, rate) == expected


def test_long_files_and_files_without_a_rate_give_the_training_maximum() -> None:
    assert len(FrameSampling().indices(10_000, 25.0)) == 32
    assert len(FrameSampling().indices(10_000, 0.0)) == 32


def test_a_request_replaces_single_settings_of_the_server() -> None:
    server = FrameSampling().with_settings({"nframes": 8})
    assert server.with_settings({"_question": "SGLang's own note"}) == server
    assert server.with_settings(None) == server
    assert server.with_settings({"fps": 1}) == FrameSampling(fps=1)
    assert server.with_settings({"nframes": 64}).nframes == 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fps": 0}, "fps=0 must be above 0"),
        ({"fps": float("nan")}, "fps=nan must be above 0"),
        ({"fps": "fast"}, "fps='fast' must be a number"),
        ({"nframes": 2.5}, "nframes=2.5 must be an integer"),
        ({"nframes": True}, "nframes=True must be an integer"),
        ({"max_frames": 3, "min_frames": 4}, "min_frames=4 must be at most max_frames=3"),
        ({"max_frames": 0}, "max_frames=0 must be above 0"),
        ({"min_frames": 40}, "min_frames=40 must be at most max_frames=32"),
        ({"max_pixels": 100}, "'max_pixels' is not one of fps, min_frames, max_frames, nframes"),
        ({"fps": 1, "nframes": 2}, "exclude each other"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_used_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrameSampling().with_settings(settings)
