"""A run beside an earlier one: what is a loss, what is noise, and what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specvlm_sglang.tools.bench.against import (
    EVERYTHING,
    Comparison,
    Earlier,
    check_settings,
    compare,
    read,
)
from specvlm_sglang.tools.bench.intervals import Interval
from specvlm_sglang.tools.bench.measure import Record
from specvlm_sglang.tools.errors import ToolError
from tests.support.bench import answer, record

SAID = tuple(range(11))
OTHER = (*SAID[:10], 99)
NOISE = (0.98, 1.0, 1.02, 0.99, 1.01)


def run(factor: float = 1.0, *, machine: float = 1.0, ids: tuple[int, ...] = SAID) -> list[Record]:
    """Five rounds in two workloads; ``factor`` slows SPECVLM down, ``machine`` everything."""
    records = []
    for workload in ("2k", "512"):
        for index, noise in enumerate(NOISE):
            where = {"workload": workload, "index": index}
            plain = answer(SAID, seconds=1 + 10 * machine)
            fast = answer(ids, seconds=1 + 4 * machine * factor * noise, rounds=3)
            records += [record("plain", plain, **where), record("fast", fast, **where)]
    return records


def earlier(records: list[Record]) -> Earlier:
    return Earlier(Path("then"), {"pair": "P"}, records, frozenset())


def lost(comparison: Comparison) -> set[tuple[str, str]]:
    return {(change.workload, change.name) for change in comparison.changes if change.lost}


def test_a_run_beside_itself_has_lost_nothing() -> None:
    comparison = compare(run(), earlier(run()))
    assert not comparison.lost
    assert {change.interval.ratio for change in comparison.changes} == {1.0}


def test_a_slower_machine_is_no_loss_but_is_shown() -> None:
    comparison = compare(run(machine=1.5), earlier(run()))
    decode = {c.configuration: c for c in comparison.changes if c.name.startswith("decode")}
    assert "decode_speedup" not in {name for _, name in lost(comparison)}
    assert decode["plain"].interval.ratio == pytest.approx(1 / 1.5)
    assert not decode["plain"].lost


def test_a_slower_draft_is_a_loss_in_every_workload_and_over_all() -> None:
    found = lost(compare(run(1.3), earlier(run())))
    assert {(w, "decode_speedup") for w in ("2k", "512", EVERYTHING)} <= found
    assert not lost(compare(run(), earlier(run(1.3))))


def test_a_loss_within_the_noise_of_the_rounds_is_none() -> None:
    # A median 8 % slower, of rounds that scatter by more.
    then, now = run(), run()
    for place, factor in zip(range(1, 20, 2), (1.5, 0.7, 1.3, 0.8, 1.1) * 2, strict=True):
        given = now[place]
        slower = answer(SAID, seconds=1 + 4 * factor, rounds=3)
        where = {"workload": given.workload, "index": given.round}
        now[place] = record("fast", slower, **where)
    comparison = compare(now, earlier(then))
    assert min(c.interval.ratio for c in comparison.changes) < 0.98
    assert not comparison.lost


def test_two_rounds_are_too_few_for_a_verdict() -> None:
    def two(factor: float) -> list[Record]:
        return [r for r in run(factor) if r.workload == "2k" and r.round < 2]

    comparison = compare(two(2.0), earlier(two(1.0)))
    assert not comparison.lost
    assert not any(change.judged for change in comparison.changes)


def test_an_answer_that_no_longer_equals_plain_decodings_is_a_loss() -> None:
    comparison = compare(run(ids=OTHER), earlier(run()))
    assert comparison.lost
    assert ("2k", "fast", "clip-0", 0) in comparison.broken
    known = frozenset((w, "fast", "clip-0", 0) for w in ("2k", "512"))
    before = Earlier(Path("then"), {}, run(ids=OTHER), known)
    assert not compare(run(ids=OTHER), before).lost


def test_other_questions_and_other_settings_are_refused() -> None:
    asked = [record("plain", answer(), index=7)]
    with pytest.raises(ToolError, match="no question in common"):
        compare(asked, earlier(run()))
    check_settings(earlier([]), {"pair": "P", "steps": 5})
    with pytest.raises(ToolError, match="measured with pair P, this run with Q"):
        check_settings(earlier([]), {"pair": "Q"})


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"results\.json cannot be read \(No such file"):
        read(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"summary": []}))
    with pytest.raises(ToolError, match="is no record of a run"):
        read(tmp_path)


def test_committed_records_can_be_compared_with() -> None:
    found = read(Path(__file__).parents[3] / "benchmarks/results/serving")
    comparison = compare(found.records, found)
    assert len(comparison.changes) > 20
    assert not comparison.lost


def test_an_interval_is_students_of_the_logarithms() -> None:
    found = Interval.of([2.0, None, 8.0])
    assert found is not None
    # Two logarithms: mean log 4, standard error log 2, t = tan(0.475 pi).
    assert found.ratio == pytest.approx(4.0)
    assert found.high == pytest.approx(4.0 * 2**12.7062047)
    assert found.low == pytest.approx(4.0 / 2**12.7062047)
    assert Interval.of([3.0]) == Interval(pytest.approx(3.0), None, None, 1)
    assert Interval.of([None]) is None
