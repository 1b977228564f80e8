"""What a round takes, by the number of its requests and of its draft steps, as far as is known.

What was measured is believed less the longer ago it was. What was not is inferred: between two
numbers of steps, from what other sizes have in common with this one, or else guessed.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

AGEING, MOST_PATIENCE = 1 / 256, 4
"""How fast doubt grows with each round; at most so many times slower for what keeps losing."""
_BETWEEN, _BEYOND, _PER_DOUBLING, _GUESSED = 0.1, 0.5, 0.25, 1.0
_GUESSED_STEP_COST = 0.05
"""Of a plain step, for each draft token, where nothing was measured."""
_RECENT, _NOISE_WEIGHT = 7, 0.05
_STEADY, _RENEWED, _NOISES = _RECENT + 1, 3, 2.0
"""Rounds of the same steps after which what changes is believed to change for any steps, and rounds
of others that can refute it, by so many times the noise of their mean."""
_NEWEST = 16
"""Of which `Undisturbed` takes the lower quartile."""
_SURPRISE = 2.0
"""One round alone counts for at most so many times what might have been expected of it."""


def most_gain(steps: int, draft_over_plain: float) -> float:
    """Tokens per second over plain decoding's, were every draft right and a verification a step.

    Parameters
    ----------
    steps
        Drafted tokens of a round.
    draft_over_plain
        What a draft step takes, in plain decode steps.
    """
    return (steps + 1) / (steps * draft_over_plain + 1)


class Undisturbed:
    """What something takes while nothing else keeps the machine busy.

    Where requests come together, the first drafts begin while the next videos are still decoded:
    then the clock shows more than what a draft costs the others.
    """

    def __init__(self) -> None:
        self._newest: deque[float] = deque(maxlen=_NEWEST)

    def note(self, seconds: float) -> None:
        """It took so long."""
        self._newest.append(seconds)

    @property
    def seconds(self) -> float | None:
        """The lower quartile of the newest ones; None before the first."""
        return sorted(self._newest)[len(self._newest) // 4] if self._newest else None


class Estimate(NamedTuple):
    """Seconds of a round, and doubt: it may take as little as ``seconds / (1 + doubt)``."""

    seconds: float
    doubt: float

    @property
    def most(self) -> float:
        """What it may take: as many times longer as it may be shorter."""
        return self.seconds * (1 + self.doubt)


@dataclass
class _Cell:
    """Rounds of one size and number of steps.

    Attributes
    ----------
    recent
        Seconds of the newest ones: the middle third counts, so that no hiccup does.
    samples
        Since it was last tried.
    at
        The size's `_Size.rounds` at the newest.
    patience
        How many times slower it ages.
    drift
        By how much other steps became slower since, which is believed of these too.
    believed
        Seconds that counted before it was timed again.
    """

    recent: deque[float]
    samples: int
    at: int
    patience: int = 1
    drift: float = 1.0
    believed: float = 0.0

    def renew(self, rounds: int = 1) -> None:
        """What is timed next is new, and what is believed counts as so many rounds of it."""
        self.believed = self.seconds
        self.recent = deque([self.believed] * rounds, maxlen=_RECENT)
        self.samples = 0

    def settle(self, noise: float) -> float:
        """How far other steps' drift goes too, now that these were timed again: all of it or less.

        Parameters
        ----------
        noise
            Of one round's time, as a share of it.

        Returns
        -------
        float
            What is taken back: a factor between 1 and one over the drift.
        """
        newest = list(self.recent)[-_RENEWED:]
        back, self.drift = 1 / self.drift, 1.0
        found = statistics.median(newest) / self.believed
        if abs(found - 1) < _NOISES * noise / _RENEWED**0.5:
            return 1.0
        return min(max(found, min(1.0, back)), max(1.0, back))

    def scale(self, change: float) -> None:
        """Believe that its rounds take so many times what they did."""
        self.recent = deque((change * one for one in self.recent), maxlen=_RECENT)
        self.drift *= change

    @property
    def seconds(self) -> float:
        order = sorted(self.recent)
        if len(order) == 2:
            return order[0]
        cut = len(order) // 3
        return statistics.fmean(order[cut : len(order) - cut])


class _Size:
    """What was measured of one size: cells by steps, and how many rounds there were."""

    def __init__(self) -> None:
        self.cells: dict[int, _Cell] = {}
        self.rounds = 0


def size_class(batch_size: int) -> int:
    """Sizes that cost about the same, by their largest: 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, ..."""
    power = 1 << max(0, batch_size - 1).bit_length()
    half = power * 3 // 4
    return half if power >= 4 and batch_size <= half else power


class RoundCosts:
    """Measured seconds of rounds, and what follows from them."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}
        self._timed = 0
        self.noise = 0.0
        """By how much of it a round's time differs from what was expected, on average."""

    def note(self, size: int, steps: int, seconds: float) -> None:
        """A round took ``seconds``; that a single one took far longer is not believed."""
        known = any(there.cells for there in self._sizes.values())
        found = self.estimate(size, steps) if known else Estimate(seconds, 0.0)
        expected = found.seconds
        here = self._sizes.setdefault(size, _Size())
        here.rounds += 1
        cell = here.cells.get(steps)
        if cell is None:
            first = min(seconds, _SURPRISE * found.most)
            here.cells[steps] = _Cell(deque([first], maxlen=_RECENT), 1, here.rounds)
            return
        if cell.drift != 1 and cell.at != here.rounds - 1:
            cell.renew(_RENEWED)
        cell.samples += 1
        self._timed += 1
        differs = abs(min(seconds / expected, _SURPRISE) - 1)
        self.noise += max(_NOISE_WEIGHT, 1 / self._timed) * (differs - self.noise)
        cell.recent.append(seconds)
        steady, cell.at = cell.at == here.rounds - 1 and cell.samples > _STEADY, here.rounds
        change = 1.0
        if steady:
            # What goes on and becomes slower, with its context, would do so with any steps.
            change = cell.seconds / expected
        elif cell.samples == _RENEWED and cell.drift != 1:
            change = cell.settle(self.noise)
        for other in here.cells.values():
            if other is not cell and change != 1:
                other.scale(change)

    def passed(self, size: int) -> None:
        """A round went by that could not be timed."""
        self._sizes.setdefault(size, _Size()).rounds += 1

    def begin_trial(self, size: int, steps: int) -> None:
        """The next rounds of these steps count as new."""
        cell = self._sizes.setdefault(size, _Size()).cells.get(steps)
        if cell is not None:
            cell.renew()

    def end_trial(self, size: int, steps: int, *, lost: bool) -> None:
        """What keeps losing ages slowly."""
        cell = self._sizes.setdefault(size, _Size()).cells.get(steps)
        if cell is not None:
            cell.patience = min(2 * cell.patience, MOST_PATIENCE) if lost else 1

    def samples(self, size: int, steps: int) -> int:
        """Rounds that were timed since the last trial."""
        here = self._sizes.get(size)
        return 0 if here is None or steps not in here.cells else here.cells[steps].samples

    def knows(self, steps: int) -> bool:
        """Whether rounds of these steps were timed at any size."""
        return any(steps in here.cells for here in self._sizes.values())

    def measured(self, size: int) -> dict[int, float]:
        """Seconds by steps of what was timed at this size."""
        here = self._sizes.get(size)
        return {} if here is None else {s: here.cells[s].seconds for s in sorted(here.cells)}

    def estimate(self, size: int, steps: int) -> Estimate:
        """Seconds of a round; in plain steps where nothing at all was measured."""
        here = self._sizes.get(size)
        if here is not None and steps in here.cells:
            cell = here.cells[steps]
            return Estimate(cell.seconds, AGEING * (here.rounds - cell.at) / cell.patience)
        inferred = [*self._elsewhere(size, steps), *_along(self.measured(size), steps)]
        if not inferred:
            return Estimate(1.0 + _GUESSED_STEP_COST * steps, _GUESSED)
        found = min(inferred, key=lambda one: one.doubt)
        age = 0 if here is None else AGEING * here.rounds
        return Estimate(found.seconds, found.doubt + age)

    def _elsewhere(self, size: int, steps: int) -> Iterator[Estimate]:
        """Other sizes' seconds, scaled by the steps that were measured here and there."""
        mine = self.measured(size)
        for other in self._sizes:
            theirs, doubt = self.measured(other), _PER_DOUBLING * abs(math.log2(other / size))
            common = [one for one in mine if one in theirs]
            if other == size or not theirs or (mine and not common):
                continue
            scale = 1.0
            if common:
                nearest = min(common, key=lambda one: abs(one - steps))
                scale = mine[nearest] / theirs[nearest]
            if steps in theirs:
                yield Estimate(theirs[steps] * scale, doubt)
            else:
                for found in _along(theirs, steps):
                    yield Estimate(found.seconds * scale, found.doubt + doubt)


def _along(known: dict[int, float], steps: int) -> Iterator[Estimate]:
    """Seconds of ``steps`` from those of other numbers of steps at the same size."""
    below = max((one for one in known if one < steps), default=None)
    above = min((one for one in known if one > steps), default=None)
    nearest = min(known, key=lambda one: (abs(one - steps), one), default=None)
    if nearest is None:
        return
    others = [one for one in known if one != nearest]
    if not others:
        plain = known[nearest] / (1 + _GUESSED_STEP_COST * nearest)
        yield Estimate(plain * (1 + _GUESSED_STEP_COST * steps), _GUESSED)
        return
    other = min(others, key=lambda one: abs(one - steps))
    if below is not None and above is not None:
        nearest, other = below, above
    # More steps never take less, whatever two noisy figures say.
    slope = max(0.0, (known[other] - known[nearest]) / (other - nearest))
    seconds = known[nearest] + slope * (steps - nearest)
    doubt = _BETWEEN if below is not None and above is not None else _BEYOND
    # Were a draft step and a row as dear as a plain step, it would be this share.
    least = min(1.0, (steps + 1) / (nearest + 1))
    yield Estimate(max(seconds, least * known[nearest]), doubt)
