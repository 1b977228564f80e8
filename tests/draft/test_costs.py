"""What is known of a round's time: measured, between, beyond, elsewhere, guessed."""

from __future__ import annotations

import pytest

from specvlm_sglang.draft.costs import (
    AGEING,
    MOST_PATIENCE,
    RoundCosts,
    Undisturbed,
    most_gain,
    size_class,
)


def known(**measured: float) -> RoundCosts:
    """Costs of which ``s8_5=2.0`` was measured: 5 steps at size 8 take 2 s."""
    costs = RoundCosts()
    for name, seconds in measured.items():
        size, steps = name[1:].split("_")
        costs.note(int(size), int(steps), seconds)
    return costs


def test_the_most_that_drafting_gives_is_a_rounds_tokens_over_its_steps() -> None:
    assert most_gain(3, 1.0) == 1.0
    # Three steps of half a plain step, and one whole: 2.5 for 4 tokens.
    assert most_gain(3, 0.5) == pytest.approx(1.6)
    assert most_gain(1, 0.0) == 2.0


def test_what_was_measured_is_a_mean_that_a_hiccup_does_not_move() -> None:
    costs = known(s1_5=2.0)
    assert costs.estimate(1, 5) == (2.0, 0.0)
    for _ in range(20):
        costs.note(1, 5, 1.0)
    costs.note(1, 5, 1000.0)
    assert costs.estimate(1, 5).seconds == 1.0
    # What lasts is no hiccup.
    for _ in range(7):
        costs.note(1, 5, 3.0)
    assert costs.estimate(1, 5).seconds == 3.0
    assert costs.measured(1).keys() == {5}
    assert costs.measured(7) == {}
    assert costs.knows(5)
    assert not costs.knows(0)


def test_a_hiccup_in_the_first_round_of_a_size_is_not_believed() -> None:
    costs = known(s8_0=1.0, s8_1=1.2, s16_0=1.0)
    expected, doubt = costs.estimate(16, 1)
    costs.note(16, 1, 50.0)
    assert costs.estimate(16, 1).seconds == pytest.approx(2 * expected * (1 + doubt))
    assert expected == pytest.approx(1.2)
    costs.note(16, 1, 1.2)
    assert costs.estimate(16, 1).seconds == pytest.approx(1.2)
    # Nothing was expected of the very first round of a server.
    assert known(s1_5=50.0).estimate(1, 5).seconds == 50.0


def test_doubt_grows_with_rounds_and_more_slowly_for_what_keeps_losing() -> None:
    costs = known(s1_0=1.0, s1_5=2.0)
    for _ in range(100):
        costs.passed(1)
    assert costs.estimate(1, 0).doubt == pytest.approx(101 * AGEING)
    for _ in range(5):
        costs.begin_trial(1, 0)
        assert costs.samples(1, 0) == 0
        costs.end_trial(1, 0, lost=True)
    assert costs.estimate(1, 0).doubt == pytest.approx(101 * AGEING / MOST_PATIENCE)
    costs.end_trial(1, 0, lost=False)
    assert costs.estimate(1, 0).doubt == pytest.approx(101 * AGEING)
    costs.end_trial(1, 3, lost=True)
    assert costs.measured(1).keys() == {0, 5}


def test_between_and_beyond_two_numbers_of_steps_lies_a_line() -> None:
    costs = known(s1_1=1.2, s1_5=2.0)
    between, below = costs.estimate(1, 3), costs.estimate(1, 0)
    assert between.seconds == pytest.approx(1.6)
    assert below.seconds == pytest.approx(1.0)
    assert between.doubt < below.doubt
    # Fewer steps never take longer, and no draft step is dearer than a plain one.
    assert known(s1_1=3.0, s1_5=2.0).estimate(1, 0).seconds == pytest.approx(3.0)
    assert known(s1_3=1.0, s1_5=9.0).estimate(1, 0).seconds == pytest.approx(0.25)
    assert known(s1_3=1.0, s1_5=9.0).estimate(1, 1).seconds == pytest.approx(0.5)


def test_a_poor_guess_does_not_hold_down_what_is_timed() -> None:
    # Videos were being decoded beside the two requests: a line through these says little of 1 step.
    costs = known(s16_1=0.068, s2_3=0.072, s2_5=0.229)
    costs.note(1, 1, 0.068)
    assert costs.estimate(1, 1).seconds == 0.068
    assert costs.estimate(1, 0).seconds >= 0.034


def test_where_one_or_nothing_was_measured_it_is_a_guess() -> None:
    nothing, one = RoundCosts(), known(s1_5=2.5)
    assert nothing.estimate(1, 5).seconds > nothing.estimate(1, 0).seconds > 0
    assert one.estimate(1, 0).seconds == pytest.approx(2.0)
    assert one.estimate(1, 0).doubt >= nothing.estimate(1, 0).doubt == 1.0
    # The longer nothing is measured, the less the guess rules out.
    for _ in range(50):
        one.passed(1)
    assert one.estimate(1, 0).doubt == pytest.approx(1 + 51 * AGEING)


def test_other_sizes_say_how_steps_compare_here() -> None:
    costs = known(s4_0=1.0, s4_5=1.5, s8_5=3.0)
    # At size 8 everything takes twice as long as far as is known.
    assert costs.estimate(8, 0).seconds == pytest.approx(2.0)
    assert costs.estimate(8, 3).seconds == pytest.approx(2.6)
    assert costs.estimate(8, 0).doubt == pytest.approx(0.25 + AGEING)
    # A size that nothing is known of: the nearest one stands for it.
    assert costs.estimate(6, 5).seconds in (1.5, 3.0)
    assert costs.estimate(64, 5).seconds == 3.0
    assert costs.estimate(64, 0).doubt > costs.estimate(8, 0).doubt


def test_sizes_of_nothing_in_common_say_nothing() -> None:
    costs = known(s4_0=1.0, s8_5=2.0)
    assert costs.estimate(8, 0).seconds == pytest.approx(2.0 / 1.25)


def test_two_rounds_of_a_trial_outweigh_all_that_was_known() -> None:
    costs = known(s1_0=1.0)
    for _ in range(7):
        costs.note(1, 5, 5.0)
    costs.begin_trial(1, 5)
    assert costs.samples(1, 5) == 0
    assert costs.estimate(1, 5).seconds == 5.0
    costs.note(1, 5, 1.2)
    costs.note(1, 5, 1.2)
    assert costs.estimate(1, 5).seconds == 1.2


def test_what_slows_down_steadily_does_so_with_any_steps() -> None:
    costs = known(s1_0=1.0)
    for _ in range(6):
        costs.note(1, 5, 2.0)
    for _ in range(60):
        costs.note(1, 5, 4.0)
    assert costs.estimate(1, 5).seconds == pytest.approx(4.0, rel=0.01)
    assert costs.estimate(1, 0).seconds == pytest.approx(2.0, rel=0.01)


def test_other_steps_that_did_not_slow_down_take_it_back() -> None:
    costs = known(s1_0=1.0, s1_1=1.5)
    for seconds in [2.0] * 9 + [2.5] * 12:
        costs.note(1, 5, seconds)
    assert costs.estimate(1, 1).seconds == pytest.approx(1.5 * 1.25)
    # The machine was busy for a while: plain decoding takes what it always did.
    for _ in range(6):
        costs.note(1, 0, 1.0)
    assert costs.estimate(1, 0).seconds == pytest.approx(1.0)
    assert costs.estimate(1, 1).seconds == pytest.approx(1.5)
    assert costs.estimate(1, 5).seconds == pytest.approx(2.0)


def test_other_steps_that_became_faster_take_back_no_more_than_was_believed() -> None:
    costs = known(s1_0=1.0, s1_1=1.5)
    for seconds in [2.0] * 9 + [2.5] * 12:
        costs.note(1, 5, seconds)
    for _ in range(6):
        costs.note(1, 0, 0.5)
    assert costs.estimate(1, 0).seconds == pytest.approx(0.5)
    assert costs.estimate(1, 1).seconds == pytest.approx(1.5)


def test_noise_is_the_mean_distance_from_what_was_expected() -> None:
    costs = known(s1_5=1.0)
    assert costs.noise == 0
    for turn in range(400):
        costs.note(1, 5, 1.1 if turn % 2 else 0.9)
    assert costs.noise == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, 1), (1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 8), (9, 12), (13, 16), (25, 32), (33, 48)],
)
def test_sizes_that_cost_alike_are_one_class(size: int, expected: int) -> None:
    assert size_class(size) == expected


def test_what_a_busy_machine_adds_does_not_count() -> None:
    takes = Undisturbed()
    assert takes.seconds is None
    for seconds in (9.0, 1.1, 8.0, 1.0, 7.0, 6.0, 1.2, 5.0):
        takes.note(seconds)
    assert takes.seconds == 1.2
    # What lasts is no disturbance.
    for _ in range(13):
        takes.note(5.0)
    assert takes.seconds == 5.0
