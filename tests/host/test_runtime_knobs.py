"""Numbers that a client sets in a running scheduler stay in their ranges."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from specvlm_sglang.host import runtime_knobs


def done(self: Any, request: Any) -> str:
    return "done"


@pytest.mark.parametrize("seconds", [None, -1.0, 0.0, 0.5, runtime_knobs.LONGEST_SECONDS])
def test_a_scheduler_can_be_slowed_down_for_seconds(seconds: float | None) -> None:
    slow_down = runtime_knobs._within_a_minute(done)
    assert slow_down(None, SimpleNamespace(forward_sleep_time=seconds)) == "done"


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 61.0])
def test_but_not_for_ever(seconds: float) -> None:
    slow_down = runtime_knobs._within_a_minute(done)
    with pytest.raises(ValueError, match="must be at most 60 seconds"):
        slow_down(None, SimpleNamespace(forward_sleep_time=seconds))


def test_other_numbers_must_be_finite() -> None:
    set_state = runtime_knobs._finite(done)
    assert set_state(None, SimpleNamespace(server_args={"a": 1})) == "done"
    with pytest.raises(ValueError, match="a=nan must be a finite number"):
        set_state(None, SimpleNamespace(server_args={"a": math.nan}))


def test_no_threshold_accepts_what_the_target_would_not_say() -> None:
    set_state = runtime_knobs._lossless(done)
    for name in ("speculative_accept_threshold_single", "speculative_accept_threshold_acc"):
        assert set_state(None, SimpleNamespace(server_args={name: 1.0})) == "done"
        with pytest.raises(ValueError, match=f"{name}=0.5 does not work with SPECVLM"):
            set_state(None, SimpleNamespace(server_args={name: 0.5}))
