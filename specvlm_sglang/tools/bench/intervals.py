"""Paired ratios with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """Geometric mean of ``count`` paired ratios, and where the true one lies.

    Attributes
    ----------
    ratio
        Geometric mean.
    low, high
        Student's t interval of the mean logarithm; None with a single pair, which says nothing
        about noise.
    """

    ratio: float
    low: float | None
    high: float | None
    count: int

    @classmethod
    def of(cls, ratios: Iterable[float | None], level: float = LEVEL) -> Interval | None:
        """Of the positive ratios that are not None; None where there are none."""
        logs = np.log([ratio for ratio in ratios if ratio is not None and ratio > 0])
        if not logs.size:
            return None
        mean = float(logs.mean())
        if logs.size == 1:
            return cls(math.exp(mean), None, None, 1)
        from scipy import stats

        error = float(stats.sem(logs))
        half = error * float(stats.t.ppf((1 + level) / 2, logs.size - 1))
        return cls(math.exp(mean), math.exp(mean - half), math.exp(mean + half), int(logs.size))

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.ratio:.2f}x"
        return f"{self.ratio:.2f}x [{self.low:.2f}, {self.high:.2f}]"
