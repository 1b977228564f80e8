"""The number of draft steps by measured costs, on traces whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from reference.pacing import Phase, best_fixed, seconds_of, simulate
from specvlm_sglang.draft.costs import AGEING, MOST_PATIENCE
from specvlm_sglang.draft.pace import (
    REFUSALS,
    TRIAL_ROUNDS,
    CostModelPolicy,
    RandomPolicy,
    pace_of,
)

CANDIDATES = (0, 1, 3, 5)
GOOD, USELESS, MIDDLING = (0.9, 0.85, 0.85, 0.8, 0.8), (0.02,), (0.5, 0.4)


def cost(row: float, step: float, extend: float) -> Callable[[int, int], float]:
    """Seconds of a round: of each verified row and request, of a draft step, of the extend."""

    def seconds(steps: int, batch: int) -> float:
        return 1.0 if steps == 0 else 1 + row * steps * batch + step * steps + extend

    return seconds


def like_a_gpu(steps: int, batch: int) -> float:
    """Up to 32 rows cost as many; those of the target 40 + 0.4 a row, of the draft 3 + 0.05."""
    drafts = (steps + 1) * (3 + 0.05 * max(batch, 32)) if steps else 0.0
    return 40 + 0.4 * max(batch * (steps + 1), 32) + drafts


CHEAP, MEMORY_BOUND, DEAR = cost(0.005, 0.02, 0.02), cost(0.01, 0.12, 0.12), cost(0.06, 0.25, 0.25)
SIZES = (1, 2, 4, 8, 16, 32, 16, 8, 4, 2, 1)
TRACES = {
    "a good draft": [Phase(4000, 1, GOOD, CHEAP, 0.1)],
    "a good draft that costs": [Phase(4000, 1, GOOD, MEMORY_BOUND, 0.1)],
    "a useless draft": [Phase(2000, 1, USELESS, MEMORY_BOUND, 0.1)],
    "a useless draft that costs much": [Phase(2000, 1, USELESS, DEAR, 0.1)],
    "a middling draft that costs much": [Phase(2000, 1, MIDDLING, DEAR, 0.1)],
    "acceptance collapses and returns": [
        Phase(1500, 1, acceptance, MEMORY_BOUND, 0.1) for acceptance in (GOOD, USELESS, GOOD)
    ],
    "the batch grows and shrinks": [Phase(400, size, GOOD, MEMORY_BOUND, 0.1) for size in SIZES],
    "the batch grows until drafts lose": [Phase(400, size, GOOD, DEAR, 0.1) for size in SIZES],
    "short loads of any size": [Phase(128, size, GOOD, like_a_gpu, 0.05) for size in 2 * SIZES],
    "short loads, useless": [Phase(128, size, USELESS, like_a_gpu, 0.05) for size in 2 * SIZES],
    "times of a noisy machine": [Phase(4000, 1, GOOD, MEMORY_BOUND, 0.3)],
    "useless on a noisy machine": [Phase(2000, 1, USELESS, MEMORY_BOUND, 0.3)],
}


def policy(clock: Callable[[], float]) -> CostModelPolicy:
    return CostModelPolicy(CANDIDATES, clock)


SEEDS = 3


@cache
def times(name: str) -> list[float]:
    """Seconds of the policy for a trace, by seed."""
    return [simulate(policy, TRACES[name], seed)[0] for seed in range(SEEDS)]


@pytest.mark.parametrize("name", TRACES)
def test_it_loses_little_to_the_best_fixed_number_of_steps(name: str) -> None:
    trace = TRACES[name]
    mean = sum(times(name)) / SEEDS
    assert mean < 1.03 * seconds_of(trace, best_fixed(trace, CANDIDATES))


@pytest.mark.parametrize("name", TRACES)
def test_it_is_hardly_ever_slower_than_plain_decoding(name: str) -> None:
    assert max(times(name)) < 1.04 * seconds_of(TRACES[name], 0)


@pytest.mark.parametrize(
    "name", ["acceptance collapses and returns", "the batch grows until drafts lose"]
)
def test_it_follows_what_changes(name: str) -> None:
    trace = TRACES[name]
    best = seconds_of(trace, best_fixed(trace, CANDIDATES))
    assert times(name)[0] < 0.95 * best


def test_trials_become_seldom_where_nothing_changes() -> None:
    _, chosen = simulate(policy, [Phase(6000, 1, USELESS, DEAR, 0.05)], 3)
    tried = [steps for steps in chosen[-4000:] if steps]
    # 1 step gives half of the tokens per second that plain decoding does.
    waits = MOST_PATIENCE / AGEING * 1.0
    assert 0 < len(tried) <= 3 * (4000 / waits + 1) * TRIAL_ROUNDS


def test_plain_decoding_is_tried_early_whatever_a_guess_says_of_it() -> None:
    for seed in range(10):
        _, chosen = simulate(policy, [Phase(300, 1, USELESS, MEMORY_BOUND, 0.3)], seed)
        assert 0 in chosen[:120]


def test_one_hiccup_of_the_machine_changes_nothing() -> None:
    slow = [1000.0]

    def hiccup(steps: int, batch: int) -> float:
        return slow.pop() if slow and steps == 5 else CHEAP(steps, batch)

    _, chosen = simulate(policy, [Phase(3000, 1, GOOD, hiccup)], 0)
    assert chosen[-200:].count(5) >= 180


@pytest.mark.parametrize("lag", [0, 1])
def test_rounds_around_a_prefill_are_not_timed(lag: int) -> None:
    now = [0.0]
    rule = CostModelPolicy((5,), lambda: now[0], lag=lag)

    def a_round(seconds: float) -> None:
        steps = rule.get_steps_for_batch(1)
        now[0] += seconds
        rule.on_verify_complete([steps], 1)

    for _ in range(4):
        a_round(1.0)
    rule.interrupted()
    # Under overlap scheduling the round before it has not ended either.
    for _ in range(1 + lag):
        a_round(50.0)
    a_round(1.0)
    assert rule.state()["round_seconds"] == {"5": 1.0}
    for _ in range(4):
        a_round(50.0)
    assert rule.state()["round_seconds"]["5"] > 1.0


def test_what_it_shows_names_the_gain_once_both_were_measured() -> None:
    now = [0.0]
    rule = CostModelPolicy((0, 3), lambda: now[0])
    seen = set()
    for _ in range(100):
        steps = rule.get_steps_for_batch(1)
        now[0] += 2.0 if steps else 1.0
        rule.on_verify_complete([steps], 1)
        seen.add(steps)
    shown = rule.state()
    assert seen == {0, 3}
    assert shown["round_seconds"] == {"0": pytest.approx(1.0), "3": pytest.approx(2.0)}
    assert shown["steps"] == 3
    assert 1.7 < shown["expected_gain"] <= 2.0
    # Rounds of plain decoding, when it is tried, are among the measured ones.
    assert 1.5 < shown["measured_gain"] <= shown["expected_gain"]


def test_a_batch_without_any_draft_decodes_plainly_and_teaches_what_that_costs() -> None:
    now = [0.0]
    rule = CostModelPolicy(CANDIDATES, lambda: now[0])
    rule.expect([None, None])
    for _ in range(5):
        assert rule.get_steps_for_batch(2) == 0
        now[0] += 3.0
        rule.on_verify_complete([0, 0], 2)
    assert rule.steps == 5
    assert rule.state()["round_seconds"] == {"0": pytest.approx(3.0)}
    rule.expect([0, None])
    assert rule.get_steps_for_batch(2) == 5


def test_drafts_that_cannot_gain_whatever_is_accepted_are_not_made_and_it_says_why() -> None:
    rule = CostModelPolicy(CANDIDATES, lambda: 0.0)
    rule.bound(1.02)
    assert rule.get_steps_for_batch(2) == 0
    assert rule.state()["hopeless"] == "every draft accepted would give 1.020x at the most"
    rule.expect([2, 2])
    rule.bound(1.2)
    assert rule.get_steps_for_batch(2) == 5


def started(start_seconds: float) -> CostModelPolicy:
    """A policy that knows rounds of 1.0 s and 0.1 s for each step, and 3 tokens of 3 or 5."""
    rule = CostModelPolicy(CANDIDATES, lambda: 0.0)
    for size in (1, 4):
        for steps in CANDIDATES:
            rule.costs.note(size, steps, 1 + 0.1 * steps)
    for _ in range(100):
        rule.acceptance.later.learn(5, [2] * 8)
    rule.started(start_seconds, 1)
    return rule


def test_a_draft_begins_where_it_saves_more_than_all_of_the_batch_waits() -> None:
    # 3 steps take 1.3 s and give 3 tokens: 8 need 3 rounds. For 2 one of 1 step is enough, 1.1 s.
    def pays(start: float, *lengths: int, batch: int = 1, scores: bool = False) -> bool:
        return started(start).pays(lengths, batch, scores=scores)

    assert pays(4.0, 8)
    assert not pays(4.2, 8)
    assert pays(0.8, 2)
    assert not pays(1.0, 2)
    assert pays(1.0, 8, batch=4)
    assert not pays(1.1, 8, batch=4)
    # Of answers that are as likely each, what is saved on average: 0.7 and 4.1.
    assert pays(2.3, 2, 8)
    assert not pays(2.5, 2, 8)
    unknown = CostModelPolicy(CANDIDATES)
    assert unknown.pays([2], 64, scores=True), "nothing is known of what a beginning takes"
    # What two drafts took together is shared.
    rule = started(3.0)
    rule.started(4.0, 2)
    assert rule.state()["start_seconds"] == pytest.approx(2.0)


def test_scores_count_where_they_are_yet_to_be_computed() -> None:
    rule = started(3.0)
    rule.scored(4.0, 2)
    assert rule.state()["score_seconds"] == pytest.approx(2.0)
    assert rule.pays([8], 1, scores=False)
    assert not rule.pays([8], 1, scores=True)
    rule.scored(0.0, 1)
    assert rule.pays([8], 1, scores=True)


@pytest.mark.parametrize("batch", [1, 4])
def test_so_many_drafts_in_a_row_begin_all_the_same(batch: int) -> None:
    rule = started(100.0)
    found = [rule.refused(batch) for _ in range(3 * REFUSALS * batch)]
    assert found == 3 * ([False] * (REFUSALS - 1) * batch + [True] * batch)


def test_a_batch_that_becomes_smaller_begins_its_drafts_at_once() -> None:
    rule = started(100.0)
    assert not any(rule.refused(8) for _ in range(100))
    assert rule.refused(2)


def test_requests_without_a_draft_count_as_such() -> None:
    rule = started(1.0)
    alone = rule.rate(5)
    rule.expect([4, None])
    assert alone == pytest.approx(3 / 1.5)
    assert rule.rate(5) == pytest.approx(2 / 1.5)
    assert rule.rate(0) == pytest.approx(1.0)
    # Their rounds say nothing of drafts.
    rule.get_steps_for_batch(2)
    rule.on_verify_complete([2, 0], 2)
    assert rule.acceptance.later.tokens(5) == pytest.approx(3.0)


def test_tokens_beyond_a_limit_count_for_nothing() -> None:
    rule = started(1.0)
    rule.expect([4, 4], [None, 2])
    assert rule.rate(5) == pytest.approx((3 + 2) / 2 / 1.5)
    assert rule.rate(1) == pytest.approx(2 / 1.1)
    # Each round has the steps that its requests can make use of.
    rule.expect([4, None, None, None], [2, 9, 9, 9])
    assert rule.get_steps_for_batch(4) == 1
    rule.expect([4, 4, 4, 4], [3, 9, 9, 9])
    assert rule.get_steps_for_batch(4) == 3
    rule.expect([4, 4, 4, 4], [1, 1, 1, 1])
    assert rule.get_steps_for_batch(4) == 0


def test_results_that_nobody_launched_are_ignored() -> None:
    rule = CostModelPolicy(CANDIDATES, lambda: 0.0)
    assert rule.on_verify_complete([3], 1) is None
    assert rule.state()["round_seconds"] == {}


def test_graphs_are_captured_for_every_size_at_every_number_of_steps() -> None:
    rule = CostModelPolicy(CANDIDATES)
    assert rule.cuda_graph_bs_for_step(0) is None
    rule.set_cuda_graph_bs([1, 8])
    assert rule.cuda_graph_bs_for_step(5) == [1, 8]


def test_a_server_chooses_among_few_steps_up_to_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECVLM_PACE", raising=False)
    assert pace_of(5, overlap=False).candidate_steps == [0, 1, 3, 5]
    assert pace_of(2, overlap=True).candidate_steps == [0, 1, 2]
    assert pace_of(1, overlap=False).candidate_steps == [0, 1]
    monkeypatch.setenv("SPECVLM_PACE", "random:3")
    chosen = pace_of(5, overlap=False)
    assert isinstance(chosen, RandomPolicy)
    assert {chosen.get_steps_for_batch(1) for _ in range(50)} == {0, 1, 3, 5}
    monkeypatch.setenv("SPECVLM_PACE", "fast")
    with pytest.raises(ValueError, match="SPECVLM_PACE='fast' must be random:SEED"):
        pace_of(5, overlap=False)
