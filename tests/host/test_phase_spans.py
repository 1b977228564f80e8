"""Phases in the traces of the requests that they are for, by SGLang's own objects."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.observability import trace
from sglang.srt.observability.req_time_stats import SchedulerReqTimeStats, calibrate_time_diff

from specvlm_sglang.host.phase_spans import LEVEL, PhaseSpans
from specvlm_sglang.report.phases import PhaseClock


def traced() -> tuple[Any, list[tuple[str, int]]]:
    """A stand-in for a request (OpenTelemetry may not be here): it lists what it is told."""
    told: list[tuple[str, int]] = []

    def trace_slice(stage: Any, start_time: float, end_time: float, attrs: dict[str, Any]) -> None:
        assert stage.level == LEVEL
        assert start_time <= end_time
        told.append((stage.stage_name, attrs["requests"]))

    return SimpleNamespace(time_stats=SimpleNamespace(trace_slice=trace_slice)), told


def test_a_phase_belongs_to_the_requests_it_is_computed_for() -> None:
    spans = PhaseSpans()
    clock = PhaseClock("cpu", spans.add)
    (first, of_first), (second, of_second) = traced(), traced()
    with clock("draft"):
        pass
    with spans.of([first, second]):
        with clock("verify"):
            pass
        with spans.of([second]), clock("draft_prefill"):
            pass
        with clock("draft_extend"):
            pass
    with clock("verify"):
        pass
    both = [("specvlm_verify", 2), ("specvlm_draft_extend", 2)]
    assert of_first == both
    assert of_second == [both[0], ("specvlm_draft_prefill", 1), both[1]]


def test_requests_are_let_go_of_where_a_pass_fails() -> None:
    spans = PhaseSpans()
    req, told = traced()
    with pytest.raises(RuntimeError, match="no room"), spans.of([req]):
        raise RuntimeError("no room")
    spans.add("verify", 0.0, 1.0, 1.0)
    assert told == []


def test_a_request_that_is_not_traced_takes_none() -> None:
    spans = PhaseSpans()
    with spans.of([SimpleNamespace(time_stats=SchedulerReqTimeStats())]):
        spans.add("verify", 0.0, 1.0, 1.0)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What SGLang's tracing exports in this process."""
    reason = "no OpenTelemetry here: `uv sync --group trace`"
    memory = pytest.importorskip(
        "opentelemetry.sdk.trace.export.in_memory_span_exporter", reason=reason
    )
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason=reason)
    export = pytest.importorskip("opentelemetry.sdk.trace.export", reason=reason)
    exporter, provider = memory.InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "opentelemetry_initialized", True)
    monkeypatch.setattr(trace, "tracer", provider.get_tracer("sglang server"))
    calibrate_time_diff()
    yield exporter
    provider.shutdown()


@pytest.mark.parametrize("level", [3, 2])
def test_sglangs_trace_of_a_request_holds_our_phases_at_its_most_detailed_level(
    exported: Any, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "get_global_trace_level", lambda: level)
    stats = SchedulerReqTimeStats()
    stats.init_trace_ctx("request-1", None)
    stats.trace_ctx.trace_req_start()
    spans = PhaseSpans()
    clock = PhaseClock("cpu", spans.add)
    with spans.of([SimpleNamespace(time_stats=stats)]), clock("target_prefill"):
        for _ in range(3):
            with clock.aside("scoring"):
                time.sleep(0.002)
            time.sleep(0.002)
    stats.trace_ctx.trace_req_finish()
    found = {span.name: span for span in exported.get_finished_spans()}
    ours = {name for name in found if name.startswith("specvlm_")}
    if level < LEVEL:
        assert not ours
        return
    assert ours == {"specvlm_target_prefill", "specvlm_scoring"}
    prefill, scoring = found["specvlm_target_prefill"], found["specvlm_scoring"]
    (root,) = [span for span in found.values() if span.parent is None]
    assert {span.context.trace_id for span in found.values()} == {root.context.trace_id}
    assert prefill.start_time <= scoring.start_time < scoring.end_time <= prefill.end_time
    lasted = (prefill.end_time - prefill.start_time) / 1e9
    parts = prefill.attributes["seconds"] + scoring.attributes["seconds"]
    assert parts == pytest.approx(lasted, abs=1e-3)
    assert scoring.attributes["seconds"] < (scoring.end_time - scoring.start_time) / 1e9
