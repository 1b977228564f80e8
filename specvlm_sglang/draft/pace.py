"""How many tokens a round drafts: what the rounds cost and what their drafts are worth.

For each number of steps the policy knows, measured, how long a round of about this many requests
takes, and how likely a draft at each depth is accepted after the ones before it. A round of s steps
then gives

    tokens(s) = 1 + sum over d = 1..s of the product of the first d acceptances,

and the best s has the most tokens per second; 0 is plain decoding. What is not measured is guessed
from what is, and tried now and then: seldom, shortly, and less and less often as it keeps losing.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)

HYSTERESIS = 1.03
"""Another number of steps must promise so much more."""
FIRST_TRIAL, LONGEST_WAIT = 16, 512
"""Rounds until something else is tried for the first time, and at most between two trials."""
TRIAL_ROUNDS = 6
WARM_ROUNDS = 8
"""Rounds after which acceptances are believed enough to try plain decoding early."""
_TIME_WEIGHT, _ACCEPTANCE_WEIGHT = 0.2, 0.05
_GUESSED_ACCEPTANCE = 0.7
_GUESSED_STEP_COST = 0.05
"""Of a plain step, for each draft token, where nothing was measured."""


@dataclass
class Costs:
    """Seconds of a round by steps, of batches of about one size.

    Attributes
    ----------
    seconds
        Running mean by steps.
    rounds
        Rounds since the last trial; decides when the next one comes.
    wait
        Rounds between two trials.
    last_tried
        By steps, the value of `total` when it was last measured.
    total
        Rounds of this size so far.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    rounds: int = 0
    wait: int = FIRST_TRIAL
    last_tried: dict[int, int] = field(default_factory=dict)
    total: int = 0

    def note(self, steps: int, seconds: float) -> None:
        """A round of ``steps`` took ``seconds``; one hiccup does not count for more than double."""
        known = self.seconds.get(steps)
        self.last_tried[steps] = self.total
        if known is None:
            self.seconds[steps] = seconds
        else:
            seconds = min(seconds, 2 * known)
            self.seconds[steps] = known + _TIME_WEIGHT * (seconds - known)

    def of(self, steps: int) -> float:
        """Seconds of a round of ``steps``; in plain steps where nothing was measured."""
        known = self.seconds
        if steps in known:
            return known[steps]
        if not known:
            return 1.0 + _GUESSED_STEP_COST * steps
        nearest = min(known, key=lambda other: (abs(other - steps), other))
        more = [other for other in known if other != nearest]
        if more:
            other = min(more, key=lambda one: (abs(one - steps), one))
            slope = max(0.0, (known[other] - known[nearest]) / (other - nearest))
        else:
            plain = known[nearest] / (1 + _GUESSED_STEP_COST * nearest)
            slope = _GUESSED_STEP_COST * plain
        # A round never costs nothing, whatever two noisy points say.
        return max(known[nearest] + slope * (steps - nearest), 0.2 * known[nearest])


def size_class(batch_size: int) -> int:
    """Sizes that cost about the same: 1, 2, 3 to 4, 5 to 8, and so on, by their largest."""
    return 1 << max(0, batch_size - 1).bit_length()


class CostModelPolicy:
    """SGLang's ``AdaptiveSpecPolicy``: steps of the next round from measured costs.

    Parameters
    ----------
    candidate_steps
        Steps to choose from, 0 (plain decoding) among them; a round starts with the most.
    clock
        Seconds, ever growing.
    """

    def __init__(
        self, candidate_steps: Sequence[int], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._candidates = sorted(set(candidate_steps))
        self._clock = clock
        self.steps = self._candidates[-1]
        """Of the next round."""
        self.reason = "nothing measured yet"
        self._acceptance = [_GUESSED_ACCEPTANCE] * self._candidates[-1]
        self._drafted_rounds = 0
        self._costs: dict[int, Costs] = {}
        self._launched: deque[tuple[int, int]] = deque()
        self._last: float | None = None
        self._skip = 1
        self._trial = 0
        self._before_trial = self.steps
        self._size = 1
        self._graph_sizes: list[int] | None = None

    # What SGLang's controller asks.

    @property
    def candidate_steps(self) -> list[int]:
        """Steps that a runtime state is built for."""
        return self._candidates

    def set_cuda_graph_bs(self, cuda_graph_bs: list[int] | None) -> None:
        """Batch sizes that CUDA graphs are captured for; None without graphs."""
        self._graph_sizes = cuda_graph_bs

    def cuda_graph_bs_for_step(self, step: int) -> list[int] | None:
        """All of them: which steps pay at which size is not known before."""
        return self._graph_sizes

    def get_steps_for_batch(self, batch_size: int) -> int:
        """Steps of the round that is about to be launched."""
        size = size_class(batch_size)
        if size != self._size:
            self._size, self._trial = size, 0
            self._skip = max(self._skip, 1)
            self._choose()
        self._launched.append((self.steps, size))
        return self.steps

    def on_verify_complete(
        self, num_correct_drafts_per_req: Sequence[int], batch_size: int
    ) -> int | None:
        """Learn from a round's results, and decide about the next; never switches by itself."""
        now = self._clock()
        last, self._last = self._last, now
        if not self._launched:
            return None
        steps, size = self._launched.popleft()
        costs = self._costs.setdefault(size, Costs())
        costs.total += 1
        if steps:
            self._learn(steps, num_correct_drafts_per_req)
        if self._skip:
            self._skip -= 1
        elif last is not None:
            costs.note(steps, now - last)
        if size == self._size:
            self._after_round(costs)
        return None

    # What the worker tells.

    def interrupted(self) -> None:
        """Something else than rounds ran: the next intervals are no round's."""
        # Under overlap scheduling a round is queued behind the interruption, and one before it.
        self._skip = 2

    def state(self) -> dict[str, Any]:
        """What is known now, JSON-ready."""
        costs = self._costs.get(self._size, Costs())
        plain = self._rate(costs, 0)
        best = self._rate(costs, self.steps)
        measured = self.steps in costs.seconds and 0 in costs.seconds
        return {
            "steps": self.steps,
            "reason": self.reason,
            "acceptance_by_depth": [round(one, 3) for one in self._acceptance],
            "round_seconds": {str(s): round(t, 6) for s, t in sorted(costs.seconds.items())},
            "expected_gain": round(best / plain, 3) if measured else None,
        }

    # How it decides.

    def expected_tokens(self, steps: int) -> float:
        """Tokens that a round of ``steps`` gives each request."""
        tokens, reached = 1.0, 1.0
        for acceptance in self._acceptance[:steps]:
            reached *= acceptance
            tokens += reached
        return tokens

    def _learn(self, steps: int, correct: Sequence[int]) -> None:
        """Update the acceptance of each depth that a draft reached."""
        self._drafted_rounds += 1
        for depth in range(steps):
            reached = sum(one >= depth for one in correct)
            if reached == 0:
                return
            share = sum(one > depth for one in correct) / reached
            # Many requests say more than one; early rounds say more than a guess.
            weight = max(_ACCEPTANCE_WEIGHT, 1 / (self._drafted_rounds + 1))
            weight = 1 - (1 - weight) ** min(reached, 8)
            self._acceptance[depth] += weight * (share - self._acceptance[depth])

    def _rate(self, costs: Costs, steps: int) -> float:
        return self.expected_tokens(steps) / costs.of(steps)

    def _after_round(self, costs: Costs) -> None:
        if self._trial > 0:
            self._trial -= 1
            if self._trial == 0:
                self._end_trial(costs)
            return
        costs.rounds += 1
        misses = self._drafted_rounds >= WARM_ROUNDS and self.expected_tokens(self.steps) < 1.5
        if misses and 0 not in costs.seconds and self.steps:
            self._try(costs, 0)
        elif costs.rounds >= costs.wait:
            self._try(costs, self._next_trial(costs))
        else:
            self._choose()

    def _next_trial(self, costs: Costs) -> int:
        """What was not tried for long, the promising ones sooner."""
        best = max(self._rate(costs, one) for one in self._candidates)

        def interest(steps: int) -> float:
            age = costs.total - costs.last_tried.get(steps, -costs.total - 1)
            return float(age * (self._rate(costs, steps) / best) ** 2)

        others = [one for one in self._candidates if one != self.steps]
        return max(others, key=interest) if others else self.steps

    def _try(self, costs: Costs, steps: int) -> None:
        self._trial = TRIAL_ROUNDS
        self._skip = max(self._skip, 1)
        costs.rounds = 0
        self._before_trial = self.steps
        self._set(steps, "tried")

    def _end_trial(self, costs: Costs) -> None:
        tried, self.steps = self.steps, self._before_trial
        self._skip = max(self._skip, 1)
        self._choose()
        # What keeps losing is tried less and less often.
        lost = self.steps != tried
        costs.wait = min(2 * costs.wait, LONGEST_WAIT) if lost else FIRST_TRIAL

    def _choose(self) -> None:
        costs = self._costs.get(self._size)
        if costs is None or not costs.seconds:
            costs = self._nearest_costs()
        best = max(self._candidates, key=lambda steps: self._rate(costs, steps))
        gain = self._rate(costs, best) / self._rate(costs, self.steps)
        if best != self.steps and gain > HYSTERESIS:
            self._set(best, f"{gain:.2f}x the tokens per second of {self.steps} steps")

    def _nearest_costs(self) -> Costs:
        """Costs of the batch size that is nearest to this one among those that were measured."""
        known = {size: costs for size, costs in self._costs.items() if costs.seconds}
        if not known:
            return Costs()
        return known[min(known, key=lambda size: (abs(size - self._size), size))]

    def _set(self, steps: int, reason: str) -> None:
        if steps != self.steps:
            if reason != "tried":
                logger.info("SPECVLM: %d draft steps instead of %d: %s", steps, self.steps, reason)
            self._skip = max(self._skip, 1)
        self.steps, self.reason = steps, reason


class RandomPolicy(CostModelPolicy):
    """Other steps in every round, whatever they cost: for tests that switching changes no token."""

    def __init__(self, candidate_steps: Sequence[int], seed: int) -> None:
        super().__init__(candidate_steps)
        self._random = random.Random(seed)

    def get_steps_for_batch(self, batch_size: int) -> int:
        """Any of the candidates."""
        self.steps, self.reason = self._random.choice(self._candidates), "at random"
        return self.steps


def pace_of(most_steps: int) -> CostModelPolicy:
    """The policy of a server that drafts at most ``most_steps``.

    ``SPECVLM_PACE=random:SEED`` takes a `RandomPolicy` instead.

    Raises
    ------
    ValueError
        ``SPECVLM_PACE`` is something else.
    """
    candidates = sorted({0, 1, 3, most_steps} & set(range(most_steps + 1)))
    asked = os.environ.get("SPECVLM_PACE", "")
    if not asked:
        return CostModelPolicy(candidates)
    kind, _, seed = asked.partition(":")
    if kind != "random" or not seed.isdecimal():
        raise ValueError(f"SPECVLM_PACE={asked!r} must be random:SEED, SEED a whole number")
    return RandomPolicy(candidates, int(seed))
