"""How many tokens a round drafts: what the rounds cost and what their drafts are worth.

For each number of steps the policy knows, measured, how long a round of about this many requests
takes, and how likely a draft at each depth is accepted after the ones before it. A round of s steps
then gives

    tokens(s) = 1 + sum over d = 1..s of the product of the first d acceptances,

and the best s has the most tokens per second; 0 is plain decoding. Other steps are tried when they
may be better as far as is known (`specvlm_sglang.draft.costs`), for as few rounds as decide it.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from specvlm_sglang.draft.acceptance import OPENING_ROUNDS, Acceptance
from specvlm_sglang.draft.costs import RoundCosts, Undisturbed, size_class

logger = logging.getLogger(__name__)

HYSTERESIS = 1.03
"""Another number of steps must promise so much more."""
SETTLED = 3
"""Rounds of a size that are timed before something else is tried."""
YARDSTICK = 32
"""Rounds after which plain decoding is tried once, whatever is guessed of it: to know the gain."""
TRIAL_ROUNDS, LEAST_TRIAL = 6, 2
"""Of a trial at most, and at least."""
LEAST_LOSS, NOISES = 0.05, 2.0
"""A trial has lost when it is behind by so much, or by so many times the noise of its mean."""
REFUSALS = 16
"""A draft begins for one of so many requests that it would not pay for, to measure it anew."""
_MEMORY = 0.99


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


class CostModelPolicy:
    """SGLang's ``AdaptiveSpecPolicy``: steps of the next round from measured costs.

    Parameters
    ----------
    candidate_steps
        Steps to choose from, 0 (plain decoding) among them; a round starts with the most.
    clock
        Seconds, ever growing.
    lag
        Rounds that are launched before the results of one are there: 1 under overlap scheduling.
    agreed
        Turns seconds that this rank measured into those that all ranks decide by.
    """

    def __init__(
        self,
        candidate_steps: Sequence[int],
        clock: Callable[[], float] = time.perf_counter,
        lag: int = 0,
        agreed: Callable[[float], float] = float,
    ) -> None:
        self._candidates = sorted(set(candidate_steps))
        self._clock = clock
        self._agreed = agreed
        self._lag = lag
        self.steps = self._candidates[-1]
        """Of the next round."""
        self.reason = "nothing measured yet"
        self.acceptance = Acceptance(self._candidates[-1])
        self.costs = RoundCosts()
        self._launched: deque[tuple[int, int, Sequence[int | None] | None]] = deque()
        self._drafted: Sequence[int | None] | None = None
        self._left: Sequence[int | None] = ()
        self._last: float | None = None
        self._skip = 1
        self.hopeless: str | None = None
        """Why the newest round that was bounded so was plain."""
        self._rests = False
        self._start, self._score = Undisturbed(), Undisturbed()
        self._refused = 0
        self._plainly = self._taken = 0.0
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
            self._end_trial()
            self._size = size
            self._skip = max(self._skip, self._lag)
        if not self._trial:
            # Another composition of the batch may want other steps.
            self._choose()
        rests = self._rests or not self._share
        steps = 0 if rests and 0 in self._candidates else self.steps
        self._launched.append((steps, size, self._drafted))
        return steps

    def on_verify_complete(
        self, num_correct_drafts_per_req: Sequence[int], batch_size: int
    ) -> int | None:
        """Learn from a round's results, and decide about the next; never switches by itself."""
        now = self._agreed(self._clock())
        last, self._last = self._last, now
        if not self._launched:
            return None
        steps, size, drafted = self._launched.popleft()
        if drafted is None:
            drafted = [OPENING_ROUNDS] * len(num_correct_drafts_per_req)
        self.acceptance.learn(steps, num_correct_drafts_per_req, drafted)
        if self._skip or last is None:
            self._skip = max(0, self._skip - 1)
            self.costs.passed(size)
        else:
            self.costs.note(size, steps, now - last)
            self._compare(size, now - last, num_correct_drafts_per_req)
        if size == self._size and steps == self.steps:
            self._after_round()
        return None

    def _compare(self, size: int, seconds: float, correct: Sequence[int]) -> None:
        """Put a round beside what plain decoding would have taken for its tokens."""
        plain = self.costs.measured(size).get(0)
        if plain is not None and correct:
            tokens = 1 + sum(correct) / len(correct)
            self._plainly = _MEMORY * self._plainly + tokens * plain
            self._taken = _MEMORY * self._taken + seconds

    # What the worker tells.

    def bound(self, most_gain: float) -> None:
        """Rest for the next round if no drafts of it can gain anything, whatever is accepted.

        Parameters
        ----------
        most_gain
            Tokens per second over plain decoding's that drafting cannot exceed.
        """
        if most_gain <= HYSTERESIS:
            self._rests = True
            self.hopeless = f"every draft accepted would give {most_gain:.3f}x at the most"

    def interrupted(self) -> None:
        """Something else than rounds ran: the next intervals are no round's."""
        # Under overlap scheduling a round is queued behind the interruption, and one before it.
        self._skip = 1 + self._lag

    def expect(self, drafted: Sequence[int | None], left: Sequence[int | None] = ()) -> None:
        """Requests of the next round.

        Parameters
        ----------
        drafted
            In how many rounds each one's draft took part; None without one.
        left
            Tokens that each one's limit leaves it, None without a limit; empty: no limits.
        """
        self._drafted, self._left = drafted, left
        self._rests = False

    def started(self, seconds: float, drafts: int) -> None:
        """Drafts of so many requests began, and the host was busy with it for ``seconds``."""
        self._start.note(self._agreed(seconds) / drafts)

    def scored(self, seconds: float, prompts: int) -> None:
        """A prefill scored rows of so many prompts, and took ``seconds`` for it."""
        self._score.note(self._agreed(seconds) / prompts)

    def pays(self, lengths: Sequence[int], batch_size: int, *, scores: bool) -> bool:
        """Whether a draft saves a request more time than its beginning takes from all of a batch.

        Parameters
        ----------
        lengths
            Tokens to come, each as likely as the others; at least one.
        batch_size
            Requests of the round; all of them wait while the draft begins.
        scores
            Whether the prompt would be scored for it.
        """
        takes = self._start.seconds
        if takes is None:
            return True
        size = size_class(batch_size)
        plain = self.costs.estimate(size, 0).seconds
        saved, tokens = 0.0, sum(lengths) / len(lengths)
        for steps in self._candidates:
            seconds = self.costs.estimate(size, steps).seconds
            rounds = sum(self.acceptance.rounds_of(steps, lengths)) / len(lengths)
            # Others may have drafts: without one of its own it takes part in their rounds.
            saved = max(saved, tokens * min(plain, seconds) - rounds * seconds)
        takes += (self._score.seconds or 0.0) if scores else 0.0
        return saved > takes * batch_size

    def refused(self, batch_size: int) -> bool:
        """A draft would not pay; whether it begins all the same, to be measured.

        As many in a row do as a batch has requests: where one of many has a draft, rounds with
        drafts are not worth trying, and a wrong figure would refuse drafts for ever.
        """
        self._refused += 1
        if self._refused <= (REFUSALS - 1) * batch_size:
            return False
        self._refused %= REFUSALS * batch_size
        return True

    @property
    def expected_gain(self) -> float | None:
        """Tokens per second over plain decoding's that the present steps promise, both measured."""
        measured = self.costs.measured(self._size)
        both = self.steps in measured and 0 in measured
        return self.rate(self.steps) / self.rate(0) if both else None

    @property
    def measured_gain(self) -> float | None:
        """The same of the newest rounds, trials included, where plain decoding was measured."""
        return self._plainly / self._taken if self._taken else None

    def state(self) -> dict[str, Any]:
        """What is known now, JSON-ready."""
        measured = self.costs.measured(self._size)
        return {
            "steps": self.steps,
            "reason": self.reason,
            "hopeless": self.hopeless,
            "acceptance_by_depth": [round(one, 3) for one in self.acceptance.later.by_depth],
            "opening_acceptance": [
                [round(one, 3) for one in kind.by_depth] for kind in self.acceptance.opening
            ],
            "round_seconds": {str(s): round(t, 6) for s, t in measured.items()},
            "expected_gain": _rounded(self.expected_gain),
            "measured_gain": _rounded(self.measured_gain),
            "start_seconds": self._start.seconds,
            "score_seconds": self._score.seconds,
        }

    # How it decides.

    def rate(self, steps: int) -> float:
        """Tokens per second of each request in rounds of ``steps``, at the present size."""
        return self._tokens(steps) / self.costs.estimate(self._size, steps).seconds

    def _tokens(self, steps: int) -> float:
        """Expected tokens of a request in the next round, no more than its limit leaves it."""
        later = self.acceptance.later
        if not self._drafted or not self._share:
            # Nobody has a draft, and there is nothing to choose: what was chosen stays.
            return later.tokens(steps)
        left = self._left or [None] * len(self._drafted)
        useful = [
            0 if rounds is None else steps if most is None else max(0, min(steps, most - 1))
            for rounds, most in zip(self._drafted, left, strict=True)
        ]
        return sum(later.tokens(one) for one in useful) / len(useful)

    @property
    def _share(self) -> float:
        """Of the next round's requests, those that have a draft."""
        if not self._drafted:
            return 1.0
        return sum(rounds is not None for rounds in self._drafted) / len(self._drafted)

    def _doubt(self, steps: int) -> float:
        return self.costs.estimate(self._size, steps).doubt

    def _hope(self, steps: int) -> float:
        """The rate that is not ruled out."""
        return self.rate(steps) * (1 + self._doubt(steps))

    def _after_round(self) -> None:
        if self._trial:
            self._trial -= 1
            timed = self.costs.samples(self._size, self.steps)
            best = max(self.rate(one) for one in self._candidates if one != self.steps)
            margin = max(LEAST_LOSS, NOISES * self.costs.noise / max(timed, 1) ** 0.5)
            lost = timed >= LEAST_TRIAL and self.rate(self.steps) < (1 - margin) * best
            if lost or not self._trial:
                self._end_trial()
            return
        self._choose()
        timed = self.costs.samples(self._size, self.steps)
        if timed >= YARDSTICK and self._candidates[0] == 0 and not self.costs.knows(0):
            self._try(0)
        elif timed >= SETTLED:
            least = HYSTERESIS * self.rate(self.steps)
            hopeful = [one for one in self._candidates if self._hope(one) > least]
            others = [one for one in hopeful if one != self.steps]
            if others:
                self._try(max(others, key=self._doubt))

    def _try(self, steps: int) -> None:
        self._trial = TRIAL_ROUNDS
        self._before_trial = self.steps
        self.costs.begin_trial(self._size, steps)
        self._set(steps, "tried")

    def _end_trial(self) -> None:
        if self._before_trial == self.steps:
            return
        self._trial = 0
        tried, self.steps = self.steps, self._before_trial
        self._skip = max(self._skip, self._lag)
        self._choose()
        self._before_trial = self.steps
        self.costs.end_trial(self._size, tried, lost=self.steps != tried)

    def _choose(self) -> None:
        best = max(self._candidates, key=self.rate)
        gain = self.rate(best) / self.rate(self.steps)
        if best != self.steps and gain > HYSTERESIS:
            self._set(best, f"{gain:.2f}x the tokens per second of {self.steps} steps")
            self._before_trial = best

    def _set(self, steps: int, reason: str) -> None:
        if steps != self.steps:
            if reason != "tried":
                logger.info("SPECVLM: %d draft steps instead of %d: %s", steps, self.steps, reason)
            self._skip = max(self._skip, self._lag)
        self.steps, self.reason = steps, reason


class RandomPolicy(CostModelPolicy):
    """Other steps in every round, whatever they cost: for tests that switching changes no token."""

    def __init__(self, candidate_steps: Sequence[int], seed: int) -> None:
        super().__init__(candidate_steps)
        self._random = random.Random(seed)

    def pays(self, lengths: Sequence[int], batch_size: int, *, scores: bool) -> bool:
        """Always."""
        return True

    def bound(self, most_gain: float) -> None:
        """Nothing."""

    def get_steps_for_batch(self, batch_size: int) -> int:
        """Any of the candidates."""
        self.steps, self.reason = self._random.choice(self._candidates), "at random"
        return self.steps


def pace_of(
    most_steps: int, *, overlap: bool, agreed: Callable[[float], float] = float
) -> CostModelPolicy:
    """The policy of a server that drafts at most ``most_steps``.

    ``SPECVLM_PACE=random:SEED`` takes a `RandomPolicy` instead.

    Parameters
    ----------
    most_steps
        ``--speculative-num-steps``.
    overlap
        Whether the server launches a round before it has the results of the one before.
    agreed
        See `CostModelPolicy`.

    Raises
    ------
    ValueError
        ``SPECVLM_PACE`` is something else.
    """
    candidates = sorted({0, 1, 3, most_steps} & set(range(most_steps + 1)))
    asked = os.environ.get("SPECVLM_PACE", "")
    if not asked:
        return CostModelPolicy(candidates, lag=int(overlap), agreed=agreed)
    kind, _, seed = asked.partition(":")
    if kind != "random" or not seed.isdecimal():
        raise ValueError(f"SPECVLM_PACE={asked!r} must be random:SEED, SEED a whole number")
    return RandomPolicy(candidates, int(seed))
