"""Time of one selection on the CPU: linear in the video's length up to the sort of its scores.

    pytest benchmarks/kernels/test_selection.py

Scores fall off like an attention map's: a few tokens hold most of the mass.
"""

import numpy as np
import pytest

from reference.selection import POLICIES, select_video_tokens, video_token_budget

# Frames of 16 x 16 tokens.
LENGTHS = {"1k": 1 << 10, "16k": 1 << 14, "128k": 1 << 17}
RETENTION = 0.1


def scores_of(n: int) -> np.ndarray:
    scores = np.random.default_rng(0).lognormal(sigma=2.0, size=n)
    return (scores / scores.sum()).astype(np.float32)


@pytest.mark.parametrize("n", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("policy", POLICIES)
def test_select_video_tokens(benchmark, policy, n):
    benchmark.group = f"{n} video tokens"
    scores, grid = scores_of(n), (n // 256, 16, 16)
    kept = benchmark(select_video_tokens, scores, RETENTION, policy=policy, grid=grid)
    assert kept.size == (n if policy == "none" else video_token_budget(n, RETENTION))
