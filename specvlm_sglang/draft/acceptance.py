"""How many drafts are right, learnt from rounds, and how many rounds an answer takes by it."""

from __future__ import annotations

from collections.abc import Sequence

OPENING_ROUNDS = 2
"""First rounds of an answer that are learnt apart: its beginning is harder, or easier, to guess."""
HORIZON = 32
"""Rounds are counted token by token for so many tokens, and at a steady rate beyond."""
_WEIGHT, _GUESS = 0.05, 0.7
_STALE = 32
"""Drafted rounds that did not reach a depth, after which its next results count as new."""
_MOST_AT_ONCE = 4
"""Requests of a round that count, each as one more result: they may be at the same place of like
answers, and then say little more than one."""


class DepthAcceptance:
    """How likely a draft at each depth is right where those before it were.

    Parameters
    ----------
    depths
        How deep drafts go at most.
    like
        Where nothing is known yet, it is as likely as there; None: a guess.
    """

    def __init__(self, depths: int, like: DepthAcceptance | None = None) -> None:
        self._like = like
        self._known = [_GUESS] * depths
        self._samples = [0] * depths
        self._unseen = [0] * depths

    @property
    def by_depth(self) -> list[float]:
        """Probabilities, the first draft's first."""
        if self._like is None:
            return self._known
        pairs = zip(self._known, self._like.by_depth, self._samples, strict=True)
        return [known if samples else like for known, like, samples in pairs]

    def tokens(self, steps: int) -> float:
        """Expected tokens of a round, the target's own included."""
        tokens, reached = 1.0, 1.0
        for acceptance in self.by_depth[:steps]:
            reached *= acceptance
            tokens += reached
        return tokens

    def shares(self, steps: int) -> list[float]:
        """Probability that exactly 0, 1, ... ``steps`` drafts are right."""
        found, reached = [], 1.0
        for acceptance in self.by_depth[:steps]:
            found.append(reached * (1 - acceptance))
            reached *= acceptance
        return [*found, reached]

    def learn(self, steps: int, correct: Sequence[int]) -> None:
        """How many drafts of each request a round of ``steps`` found right."""
        by_depth = self.by_depth
        for depth, known in enumerate(by_depth):
            reached = sum(one >= depth for one in correct)
            if depth >= steps or not reached:
                self._unseen[depth] += 1
                continue
            if self._unseen[depth] > _STALE:
                self._samples[depth] = 0
            self._unseen[depth] = 0
            self._samples[depth] += 1
            share = sum(one > depth for one in correct) / reached
            # Many requests say more than one; early rounds say more than a guess.
            steady = 1 - (1 - _WEIGHT) ** min(reached, _MOST_AT_ONCE)
            weight = max(steady, 1 / (self._samples[depth] + 1))
            self._known[depth] = known + weight * (share - known)


class Acceptance:
    """What is known of the drafts of a server, the opening rounds of an answer apart.

    Parameters
    ----------
    depths
        How deep drafts go at most.

    Attributes
    ----------
    later
        Of the rounds after the opening ones.
    opening
        Of the first round of an answer, the second, ...
    """

    def __init__(self, depths: int) -> None:
        self.later = DepthAcceptance(depths)
        self.opening = [DepthAcceptance(depths, self.later) for _ in range(OPENING_ROUNDS)]

    def learn(self, steps: int, correct: Sequence[int], drafted: Sequence[int | None]) -> None:
        """Learn from a round.

        Parameters
        ----------
        steps
            That were drafted.
        correct
            How many drafts of each request were right.
        drafted
            In how many rounds each one's draft had taken part before; None without a draft.
        """
        kinds = [*self.opening, self.later]
        found: list[list[int]] = [[] for _ in kinds]
        for right, rounds in zip(correct, drafted, strict=False):
            if rounds is not None:
                found[min(rounds, OPENING_ROUNDS)].append(right)
        for kind, of_kind in zip(kinds, found, strict=True):
            if of_kind:
                kind.learn(steps, of_kind)

    def rounds(self, steps: int) -> list[float]:
        """Expected rounds of ``steps`` until an answer that begins has 0, 1, ... `HORIZON` tokens.

        E[t] = 1 + sum over k of P(k right) E[t - k - 1]; nothing is expected of E[0] and before.
        """
        shares = self.later.shares(steps)
        expected = [0.0]
        for tokens in range(1, HORIZON + 1):
            expected.append(1 + _after(shares, expected, tokens))
        for kind in reversed(self.opening):
            shares, before = kind.shares(steps), expected
            later = [1 + _after(shares, before, tokens) for tokens in range(1, HORIZON + 1)]
            expected = [0.0, *later]
        return expected

    def rounds_of(self, steps: int, lengths: Sequence[int]) -> list[float]:
        """The same for answers of any length, in the order of ``lengths``."""
        expected, each = self.rounds(steps), self.later.tokens(steps)
        return [
            expected[min(length, HORIZON)] + max(0, length - HORIZON) / each for length in lengths
        ]


def _after(shares: Sequence[float], expected: Sequence[float], tokens: int) -> float:
    """What is expected after a round, of an answer that wanted ``tokens`` before it."""
    return sum(
        share * expected[tokens - right - 1]
        for right, share in enumerate(shares)
        if right + 1 < tokens
    )
