"""What is learnt of drafts, and the rounds that follow from it."""

from __future__ import annotations

import numpy as np
import pytest

from specvlm_sglang.draft.acceptance import (
    HORIZON,
    OPENING_ROUNDS,
    Acceptance,
    DepthAcceptance,
)


def taught(*correct: int, steps: int = 3) -> DepthAcceptance:
    """Rounds in which so many drafts were right, as often each, for long."""
    known = DepthAcceptance(steps)
    for _ in range(100):
        known.learn(steps, correct)
    return known


def test_acceptance_of_a_depth_that_was_long_unseen_is_learned_anew() -> None:
    known = DepthAcceptance(3)
    for _ in range(200):
        known.learn(3, [0])
    assert known.tokens(3) < 1.01
    for _ in range(40):
        known.learn(0, [0])
    for _ in range(4):
        known.learn(3, [3])
    assert known.by_depth[0] > 0.6
    assert known.by_depth[1] == known.by_depth[2] > 0.7


@pytest.mark.parametrize("before", [0, 40, 1000])
def test_requests_at_the_same_place_of_like_answers_do_not_settle_it_in_one_round(
    before: int,
) -> None:
    known = DepthAcceptance(1)
    for _ in range(before):
        known.learn(1, [1] * 16)
    # Long unseen, or not: half of what was believed stays.
    for unseen in (0, 40):
        for _ in range(unseen):
            known.learn(0, [0] * 16)
        believed = known.by_depth[0]
        known.learn(1, [0] * 16)
        assert known.by_depth[0] >= believed / 2
        for _ in range(before):
            known.learn(1, [1] * 16)
    # Four of them say more than one.
    one, four = taught(1, steps=1), taught(1, steps=1)
    one.learn(1, [0])
    four.learn(1, [0] * 4)
    assert four.by_depth[0] < one.by_depth[0] - 0.1


def test_shares_are_those_of_the_rounds() -> None:
    known = taught(0, 0, 1, 3)
    assert known.shares(3) == pytest.approx([0.5, 0.25, 0.0, 0.25], abs=1e-3)
    assert known.tokens(3) == pytest.approx(2.0, abs=1e-3)
    # Fewer steps cut what would have gone on.
    assert known.shares(1) == pytest.approx([0.5, 0.5], abs=1e-3)
    assert known.shares(0) == [1.0]


def test_what_nothing_is_known_of_is_as_elsewhere() -> None:
    other = taught(1, 1, 1)
    known = DepthAcceptance(3, like=other)
    assert known.by_depth == other.by_depth
    known.learn(1, [0] * 8)
    assert known.by_depth[0] == pytest.approx(other.by_depth[0] / 2)
    assert known.by_depth[1:] == other.by_depth[1:]


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_expected_rounds_are_those_of_drawn_answers(steps: int) -> None:
    known, chances = Acceptance(5), [(0.3, 0.4), (0.6,), (0.75, 0.8, 0.85, 0.9, 0.9)]
    for kind, by_depth in zip([*known.opening, known.later], chances, strict=True):
        kind._known[: len(by_depth)] = by_depth
        kind._known[len(by_depth) :] = [by_depth[-1]] * (5 - len(by_depth))
        kind._samples[:] = [1] * 5
    generator = np.random.default_rng(0)

    def rounds_for(tokens: int) -> int:
        rounds = given = 0
        while given < tokens:
            by_depth = chances[min(rounds, OPENING_ROUNDS)]
            right = 0
            while right < steps and generator.random() < by_depth[min(right, len(by_depth) - 1)]:
                right += 1
            given += 1 + right
            rounds += 1
        return rounds

    lengths = (0, 1, 2, 5, HORIZON)
    for tokens, expected in zip(lengths, known.rounds_of(steps, lengths), strict=True):
        drawn = [rounds_for(tokens) for _ in range(4000)]
        assert expected == pytest.approx(np.mean(drawn), rel=0.03, abs=0.01)


def test_beyond_the_horizon_rounds_give_as_much_as_on_average() -> None:
    known = Acceptance(3)
    known.later = taught(0, 3)
    (near, far) = known.rounds_of(3, [HORIZON, HORIZON + 50])
    assert far - near == pytest.approx(50 / 2.5, rel=1e-3)


def test_opening_rounds_and_requests_without_a_draft_are_learnt_apart() -> None:
    known = Acceptance(1)
    for _ in range(100):
        known.learn(1, [0, 0, 1, 1, 0], [0, 1, 2, 9, None])
    assert known.opening[0].by_depth[0] < 0.01
    assert known.opening[1].by_depth[0] < 0.01
    assert known.later.by_depth[0] > 0.99
