"""How well a rule that chooses the number of draft steps does, on traces whose truth is known.

A trace says for each round how many requests run, what a round of s steps costs, and how likely a
draft at each depth is accepted. A rule sees only what a server sees: which steps it chose, how long
the round took, and how many drafts of each request were right. Its *regret* is the time that it
takes for the tokens of a trace, over the time of the best fixed number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["Phase", "Rule", "best_fixed", "regret", "seconds_of", "simulate"]


class Rule(Protocol):
    """What SGLang calls an adaptive policy, as far as it decides."""

    def get_steps_for_batch(self, batch_size: int) -> int:
        """Steps of the next round."""

    def on_verify_complete(
        self, num_correct_drafts_per_req: Sequence[int], batch_size: int
    ) -> int | None:
        """A round's results are there."""


@dataclass(frozen=True)
class Phase:
    """A stretch of a trace in which nothing changes.

    Attributes
    ----------
    tokens
        Tokens that each request gets in it.
    batch_size
        Requests that run together.
    acceptance
        Probability that a draft is right where those before it were, by depth; the last value
        holds for all deeper ones.
    seconds
        Of a round, by steps and batch size.
    noise
        Relative standard deviation of a round's time.
    """

    tokens: int
    batch_size: int
    acceptance: tuple[float, ...]
    seconds: Callable[[int, int], float]
    noise: float = 0.0

    def at(self, depth: int) -> float:
        """Acceptance of the draft at ``depth``, from 0 on."""
        return self.acceptance[min(depth, len(self.acceptance) - 1)]

    def expected_tokens(self, steps: int) -> float:
        """Tokens per round and request of ``steps`` steps, the target's own included."""
        reached = np.cumprod([self.at(depth) for depth in range(steps)])
        return float(1 + reached.sum())


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def simulate(
    make_rule: Callable[[Callable[[], float]], Rule], trace: Sequence[Phase], seed: int
) -> tuple[float, list[int]]:
    """Run a rule through a trace.

    Parameters
    ----------
    make_rule
        Given a clock (seconds), returns the rule.
    trace
        Its phases, one after another. A phase ends when its requests have their tokens on average.
    seed
        Of the drawn acceptances and times.

    Returns
    -------
    float
        Seconds for the whole trace.
    list of int
        The steps of each round.
    """
    generator, clock = np.random.default_rng(seed), _Clock()
    rule, chosen = make_rule(clock), []
    for phase in trace:
        given = 0.0
        while given < phase.tokens:
            steps = rule.get_steps_for_batch(phase.batch_size)
            correct = [_correct(phase, steps, generator) for _ in range(phase.batch_size)]
            took = phase.seconds(steps, phase.batch_size)
            took *= max(0.3, 1 + phase.noise * generator.standard_normal())
            clock.now += took
            rule.on_verify_complete(correct, phase.batch_size)
            given += 1 + sum(correct) / phase.batch_size
            chosen.append(steps)
    return clock.now, chosen


def _correct(phase: Phase, steps: int, generator: np.random.Generator) -> int:
    for depth in range(steps):
        if generator.random() >= phase.at(depth):
            return depth
    return steps


def seconds_of(trace: Sequence[Phase], steps: int) -> float:
    """Expected seconds of a trace with always the same number of steps."""
    return sum(
        phase.tokens / phase.expected_tokens(steps) * phase.seconds(steps, phase.batch_size)
        for phase in trace
    )


def best_fixed(trace: Sequence[Phase], candidates: Sequence[int]) -> int:
    """The number of steps that is best if it never changes."""
    return min(candidates, key=lambda steps: seconds_of(trace, steps))


def regret(
    make_rule: Callable[[Callable[[], float]], Rule],
    trace: Sequence[Phase],
    candidates: Sequence[int],
    seeds: Sequence[int],
) -> float:
    """Mean time of a rule over the time of the best fixed number of steps, minus 1.

    Negative where the trace changes and the rule follows it.
    """
    times = [simulate(make_rule, trace, seed)[0] for seed in seeds]
    best = seconds_of(trace, best_fixed(trace, candidates))
    return float(np.mean(times) / best - 1)
