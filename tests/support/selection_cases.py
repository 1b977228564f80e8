"""Hypothesis strategies and a comparison that the tests of the reference's selection share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

# Other work on the machine must not fail a property.
steady = settings(deadline=None)

SCORED = ("specvlm", "specvlm-grid", "attention", "attention-spread")
"""Policies that read the target's attention and nothing else of a video's content."""
FEATURED = ("attention-change-spread", "scope", "floc", "change", "evs", "specvlm-spread")
"""Policies that read the draft's features."""
NESTED = ("attention", "random", "window-front", "window-back", "none")

grids = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 7))
shares = st.floats(0.0, 1.0)
retentions = st.floats(0.001, 1.0)
seeds = st.integers(0, 2**32 - 1)
# Few distinct values, so that ties and zeros are common.
coarse = st.integers(0, 5).map(lambda level: level / 8)
score_values = coarse | st.floats(0.0, 1.0, width=32)
score_lists = st.lists(score_values, max_size=120)


@st.composite
def scored_grids(draw: Any) -> Any:
    """A grid and float32 scores for each of its tokens."""
    grid = draw(grids)
    n = math.prod(grid)
    return np.array(draw(st.lists(score_values, min_size=n, max_size=n)), np.float32), grid


def assert_same(actual: Any, expected: Any) -> None:
    """``actual`` is int64 and equal to ``expected``."""
    assert actual.dtype == np.int64
    np.testing.assert_array_equal(actual, np.array(expected, dtype=np.int64))


def features_of(n: int, seed: int = 0, width: int = 5) -> np.ndarray:
    """float32 ``[n, width]``: a few kinds of tokens, some repeated exactly, one kind all zero."""
    rng = np.random.default_rng([seed, n])
    kinds = rng.normal(size=(6, width)) * (np.arange(6) > 0)[:, None]
    noise = rng.normal(size=(n, width)) * (rng.random((n, 1)) < 0.5)
    return (kinds[rng.integers(0, 6, n)] + 0.2 * noise).astype(np.float32)
