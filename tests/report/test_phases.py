"""What phases count where one is interrupted by another."""

from __future__ import annotations

import itertools
import time

import pytest

from specvlm_sglang.report.phases import PhaseClock


def test_time_aside_belongs_to_its_own_phase_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(step=1.0)
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    clock = PhaseClock("cpu")
    with clock("target_prefill"):
        for _ in range(3):
            with clock.aside("scoring"):
                pass
    with clock("target_prefill"):
        pass
    # Seven steps around three, then one.
    assert clock.seconds["target_prefill"] == 7 - 3 + 1
    assert clock.seconds["scoring"] == 3
    assert (clock.calls["target_prefill"], clock.calls["scoring"]) == (2, 0)


def test_a_listener_hears_each_phase_and_once_what_was_set_aside_within_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = itertools.count(step=1.0)
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    heard: list[tuple[str, float, float, float]] = []
    clock = PhaseClock("cpu", lambda *told: heard.append(told))
    with clock("target_prefill"):
        for _ in range(3):
            with clock.aside("scoring"):
                pass
    with clock("verify"):
        pass
    # Aside from tick 1 to 6, three steps of them; around it from 0 to 7.
    assert heard == [
        ("scoring", 1.0, 6.0, 3.0),
        ("target_prefill", 0.0, 7.0, 4.0),
        ("verify", 8.0, 9.0, 1.0),
    ]


def test_a_phase_that_fails_is_heard_too() -> None:
    heard: list[tuple[str, float, float, float]] = []
    clock = PhaseClock("cpu", lambda *told: heard.append(told))
    with pytest.raises(RuntimeError, match="no room"), clock("draft"):
        raise RuntimeError("no room")
    assert [told[0] for told in heard] == ["draft"]
