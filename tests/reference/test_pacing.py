"""The simulator of rules that choose the number of draft steps."""

import pytest

from reference.pacing import Phase, best_fixed, regret, seconds_of, simulate


class Always:
    """A rule that never changes its mind."""

    def __init__(self, steps):
        self.steps = steps

    def get_steps_for_batch(self, batch_size):
        return self.steps

    def on_verify_complete(self, num_correct_drafts_per_req, batch_size):
        assert len(num_correct_drafts_per_req) == batch_size
        assert all(0 <= correct <= self.steps for correct in num_correct_drafts_per_req)


def seconds(steps, batch):
    return 1 + 0.1 * steps


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_fixed_rule_takes_the_time_that_is_expected_of_it(steps):
    trace = [Phase(20_000, 2, (0.8, 0.5), seconds)]
    took, chosen = simulate(lambda clock: Always(steps), trace, 0)
    assert set(chosen) == {steps}
    assert took == pytest.approx(seconds_of(trace, steps), rel=0.02)


def test_expected_tokens_multiply_acceptances_down_the_chain():
    phase = Phase(1, 1, (0.5, 0.25), seconds)
    assert phase.expected_tokens(0) == 1
    assert phase.expected_tokens(3) == pytest.approx(1 + 0.5 + 0.125 + 0.03125)


def test_the_best_fixed_steps_weigh_tokens_against_seconds():
    assert best_fixed([Phase(100, 1, (0.9,), seconds)], (0, 1, 3, 5)) == 5
    assert best_fixed([Phase(100, 1, (0.05,), seconds)], (0, 1, 3, 5)) == 0


def test_the_best_fixed_rule_has_no_regret_and_a_worse_one_has():
    trace = [Phase(5000, 1, (0.9,), seconds, noise=0.2)]
    assert abs(regret(lambda clock: Always(5), trace, (0, 1, 5), range(3))) < 0.03
    assert regret(lambda clock: Always(0), trace, (0, 1, 5), range(3)) > 1
