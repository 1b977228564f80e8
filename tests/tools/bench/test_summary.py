"""Medians, spreads, ratios within a round, and whether answers equal plain decoding's."""

from __future__ import annotations

import pytest

from specvlm_sglang.tools.bench.measure import difference
from specvlm_sglang.tools.bench.summary import Spread, mismatches, summarise
from tests.support.bench import answer, record


def test_a_spread_has_the_median_and_both_ends() -> None:
    assert Spread.of([3.0, 1.0, None, 10.0]) == Spread(3.0, 1.0, 10.0, 3)
    assert Spread.of([None]) is None


def test_ratios_are_taken_within_a_round_and_then_the_median() -> None:
    records = [
        # Rounds of different difficulty: the ratio of the medians (4 / 4) would be wrong.
        *(record("plain", answer(seconds=s), index=i) for i, s in enumerate((2.0, 4.0, 9.0))),
        *(record("fast", answer(seconds=s), index=i) for i, s in enumerate((1.0, 8.0, 4.0))),
    ]
    row = summarise(records)[1]
    assert row.configuration == "fast"
    assert row.metrics["seconds"] == Spread(4.0, 1.0, 8.0, 3)
    assert row.ratios["latency_speedup"] == Spread(2.0, 0.5, 2.25, 3)


def test_a_speedup_above_one_means_faster_and_a_wait_above_one_means_longer() -> None:
    plain = record("plain", answer(first=1.0, seconds=5.0))
    fast = record("fast", answer(first=2.0, seconds=3.0))
    ratios = summarise([plain, fast])[1].ratios
    assert ratios["decode_speedup"] == Spread(4.0, 4.0, 4.0, 1)
    assert ratios["latency_speedup"] == Spread(5 / 3, 5 / 3, 5 / 3, 1)
    assert ratios["first_token_ratio"] == Spread(2.0, 2.0, 2.0, 1)


def test_accept_length_leaves_out_the_prefills_token_and_weighs_answers_by_rounds() -> None:
    records = [
        record("plain", answer(), answer()),
        record("fast", answer((1,) * 11, rounds=2), answer((1,) * 3, rounds=2)),
    ]
    plain, fast = summarise(records)
    assert plain.metrics["accept_length"] == Spread(1.0, 1.0, 1.0, 1)
    assert fast.metrics["accept_length"] == Spread(3.0, 3.0, 3.0, 1)


def test_answers_that_differ_are_counted_with_their_first_position() -> None:
    plain = record("plain", answer((1, 2, 3)), answer((1, 2, 3)), answer((1, 2, 3)))
    other = record("fast", answer((1, 2, 3)), answer((1, 9, 3)), answer((1, 2)))
    row = summarise([plain, other])[1]
    assert (row.equal, row.compared) == (1, 3)
    assert [(m.task, m.position) for m in row.mismatches] == [("clip-1", 1), ("clip-2", 2)]
    assert mismatches(plain, plain) == []


def test_a_record_is_compared_with_plain_decoding_of_its_own_batch() -> None:
    records = [
        record("plain", answer(seconds=2.0), batch=0),
        record("plain", answer(seconds=6.0), batch=1),
        record("fast", answer(seconds=2.0), batch=1),
    ]
    assert summarise(records)[1].ratios["latency_speedup"] == Spread(3.0, 3.0, 3.0, 1)


def test_without_plain_decoding_in_the_batch_another_batch_serves() -> None:
    records = [record("plain", answer(seconds=2.0)), record("fast", answer(seconds=1.0), batch=1)]
    row = summarise(records)[1]
    assert row.compared == 1
    assert row.ratios["latency_speedup"] == Spread(2.0, 2.0, 2.0, 1)


def test_without_plain_decoding_at_all_nothing_is_compared() -> None:
    row = summarise([record("fast", answer())])[0]
    assert row.compared == 0
    assert row.ratios["decode_speedup"] is None


def test_an_answer_of_one_token_has_no_decoding_rate() -> None:
    row = summarise([record("plain", answer((1,), rounds=0))])[0]
    assert row.metrics["decode_tokens_per_second"] is None
    assert row.metrics["accept_length"] is None


def test_phases_are_given_per_answer_and_only_where_a_server_counts_them() -> None:
    phases = {"verify": 3.0}
    plain, fast = record("plain", answer()), record("fast", answer(), phases=phases)
    rows = summarise([plain, fast])
    assert rows[0].metrics["phase.verify"] is None
    assert rows[1].metrics["phase.verify"] == Spread(3.0, 3.0, 3.0, 1)
    two = record("fast", answer(), answer(), phases=phases)
    assert summarise([two])[0].metrics["phase.verify"] == Spread(1.5, 1.5, 1.5, 1)


def test_cold_answers_are_counted() -> None:
    assert summarise([record("fast", answer(), answer(cold="full"))])[0].cold == 1


def test_phases_are_differences_between_two_states() -> None:
    before = {"draft": {"seconds": 1.0, "calls": 2}}
    after = {"draft": {"seconds": 1.5, "calls": 5}, "verify": {"seconds": 2.0, "calls": 1}}
    assert difference(before, after) == {
        "draft": {"seconds": pytest.approx(0.5), "calls": 3},
        "verify": {"seconds": 2.0, "calls": 1},
    }
