"""Which clips a step sees, and how fast it learns."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.tinyvid.data import Shape

TOKENS_PER_BATCH = 2048
_WARM_UP = 60


def batch_shape(
    seed: int, step: int, steps: int, *, tokens: int = TOKENS_PER_BATCH, fresh: bool = True
) -> Shape:
    """The shape of a step's batch: short clips first, then mixed lengths, rates and resolutions.

    Parameters
    ----------
    seed, step : int
        The shape follows from them.
    steps : int
        Of the whole training.
    tokens : int
        Video tokens of a batch, at most.
    fresh : bool
        Whether the weights started at random; trained ones need no short clips first.
    """
    rng = np.random.default_rng([seed, step, 1])
    progress = step / steps
    draw = rng.random()
    if fresh and progress < 0.12:
        side, fps, seconds = 112, 2, rng.integers(3, 7)
    elif draw < 0.62:
        side, fps, seconds = 112, 2, rng.integers(4, 17)
    elif draw < 0.78:
        side, fps, seconds = 112, 4, rng.integers(3, 9)
    elif draw < 0.90:
        side, fps, seconds = 224, 2, rng.integers(4, 17)
    else:
        side, fps, seconds = 224, 4, rng.integers(3, 9)
    shape = Shape(side, int(seconds), fps, 1)
    clips = tokens // (shape.grids * (side // 28) ** 2)
    return Shape(side, int(seconds), fps, int(np.clip(clips, 2, 24)))


def learning_rate(step: int, steps: int) -> float:
    """Share of the peak: linear warm-up, cosine to a fiftieth."""
    warm = min(1.0, (step + 1) / _WARM_UP)
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
