"""The number of draft steps by measured costs, on traces whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from reference.pacing import Phase, best_fixed, regret, seconds_of, simulate
from specvlm_sglang.draft.pace import (
    FIRST_TRIAL,
    TRIAL_ROUNDS,
    CostModelPolicy,
    Costs,
    RandomPolicy,
    pace_of,
    size_class,
)

CANDIDATES = (0, 1, 3, 5)
GOOD, USELESS, MIDDLING = (0.9, 0.85, 0.85, 0.8, 0.8), (0.02,), (0.5, 0.4)


def cost(row: float, step: float, extend: float) -> Callable[[int, int], float]:
    """Seconds of a round: of each verified row and request, of a draft step, of the extend."""

    def seconds(steps: int, batch: int) -> float:
        return 1.0 if steps == 0 else 1 + row * steps * batch + step * steps + extend

    return seconds


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
    "the batch grows and shrinks": [Phase(600, size, GOOD, MEMORY_BOUND, 0.1) for size in SIZES],
    "the batch grows until drafts lose": [Phase(600, size, GOOD, DEAR, 0.1) for size in SIZES],
}


def policy(clock: Callable[[], float]) -> CostModelPolicy:
    return CostModelPolicy(CANDIDATES, clock)


@pytest.mark.parametrize("name", TRACES)
def test_it_loses_little_to_the_best_fixed_number_of_steps(name: str) -> None:
    assert regret(policy, TRACES[name], CANDIDATES, seeds=range(4)) < 0.04


@pytest.mark.parametrize("name", TRACES)
def test_it_is_hardly_ever_slower_than_plain_decoding(name: str) -> None:
    plain = seconds_of(TRACES[name], 0)
    for seed in range(4):
        assert simulate(policy, TRACES[name], seed)[0] < plain * 1.04


@pytest.mark.parametrize(
    "name", ["acceptance collapses and returns", "the batch grows until drafts lose"]
)
def test_it_follows_what_changes(name: str) -> None:
    trace = TRACES[name]
    best = seconds_of(trace, best_fixed(trace, CANDIDATES))
    assert simulate(policy, trace, 0)[0] < 0.95 * best


def test_trials_become_seldom_where_nothing_changes() -> None:
    _, chosen = simulate(policy, [Phase(6000, 1, USELESS, DEAR, 0.05)], 3)
    tried = [steps for steps in chosen[-4000:] if steps]
    assert len(tried) <= 4000 / 512 * TRIAL_ROUNDS * 2


def test_one_hiccup_of_the_machine_changes_nothing() -> None:
    slow = [1000.0]

    def hiccup(steps: int, batch: int) -> float:
        return slow.pop() if slow and steps == 5 else CHEAP(steps, batch)

    _, chosen = simulate(policy, [Phase(3000, 1, GOOD, hiccup)], 0)
    assert chosen[-200:].count(5) >= 180


def test_costs_that_were_not_measured_follow_from_those_that_were() -> None:
    costs = Costs()
    assert costs.of(5) > costs.of(0) > 0
    costs.note(5, 2.0)
    assert costs.of(0) < costs.of(3) < costs.of(5) == 2.0
    costs.note(0, 1.0)
    assert costs.of(3) == pytest.approx(1.6)
    costs.note(0, 3.0)
    assert costs.of(5) == 2.0
    assert costs.of(0) == pytest.approx(1.2), "a hiccup counts as double at most"


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (33, 64)])
def test_sizes_that_cost_alike_are_one_class(size: int, expected: int) -> None:
    assert size_class(size) == expected


def test_rounds_around_a_prefill_are_not_timed() -> None:
    now = [0.0]
    rule = CostModelPolicy(CANDIDATES, lambda: now[0])

    def a_round(seconds: float) -> None:
        steps = rule.get_steps_for_batch(1)
        now[0] += seconds
        rule.on_verify_complete([steps], 1)

    for _ in range(4):
        a_round(1.0)
    rule.interrupted()
    for seconds in (50.0, 50.0, 1.0):
        a_round(seconds)
    assert rule.state()["round_seconds"] == {"5": 1.0}


def test_what_it_shows_names_the_gain_once_both_were_measured() -> None:
    now = [0.0]
    rule = CostModelPolicy((0, 3), lambda: now[0])
    seen = set()
    for _ in range(6 * FIRST_TRIAL):
        steps = rule.get_steps_for_batch(1)
        now[0] += 2.0 if steps else 1.0
        rule.on_verify_complete([steps], 1)
        seen.add(steps)
    shown = rule.state()
    assert seen == {0, 3}
    assert shown["round_seconds"] == {"0": pytest.approx(1.0), "3": pytest.approx(2.0)}
    assert shown["steps"] == 3
    assert 1.7 < shown["expected_gain"] <= 2.0


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
    assert pace_of(5).candidate_steps == [0, 1, 3, 5]
    assert pace_of(2).candidate_steps == [0, 1, 2]
    assert pace_of(1).candidate_steps == [0, 1]
    monkeypatch.setenv("SPECVLM_PACE", "random:3")
    chosen = pace_of(5)
    assert isinstance(chosen, RandomPolicy)
    assert {chosen.get_steps_for_batch(1) for _ in range(50)} == {0, 1, 3, 5}
    monkeypatch.setenv("SPECVLM_PACE", "fast")
    with pytest.raises(ValueError, match="SPECVLM_PACE='fast' must be random:SEED"):
        pace_of(5)
