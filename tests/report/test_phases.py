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
