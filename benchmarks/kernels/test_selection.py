"""Time of one selection on the CPU: torch beside the NumPy reference, which it equals.

    pytest benchmarks/kernels/test_selection.py

Linear in the video's length up to the sort of its scores, which fall off like an attention map's: a
few tokens hold most of the mass.
"""

import numpy as np
import pytest
import torch

import reference.selection
from reference.selection import POLICIES, video_token_budget
from specvlm_sglang.pruning.selection import select_video_tokens

# Frames of 16 x 16 tokens.
LENGTHS = {"1k": 1 << 10, "16k": 1 << 14, "128k": 1 << 17}
RETENTION = 0.1


def scores_of(n: int) -> np.ndarray:
    scores = np.random.default_rng(0).lognormal(sigma=2.0, size=n)
    return (scores / scores.sum()).astype(np.float32)


def features_of(n: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n, 64), np.float32)


def numpy_of(scores, policy, grid):
    features = features_of(len(scores))
    return lambda: reference.selection.select_video_tokens(
        scores, RETENTION, policy=policy, grid=grid, features=features
    )


def torch_of(scores, policy, grid):
    on_device, features = torch.from_numpy(scores), torch.from_numpy(features_of(len(scores)))
    return lambda: (
        select_video_tokens(
            on_device,
            retention=RETENTION,
            top_p=0.4,
            policy=policy,
            grid=grid,
            features=features,
        ).indices
    )


IMPLEMENTATIONS = {"numpy": numpy_of, "torch": torch_of}


@pytest.mark.parametrize("n", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_select_video_tokens(benchmark, implementation, policy, n):
    benchmark.group = f"{policy}, {n} video tokens"
    case = scores_of(n), policy, (n // 256, 16, 16)
    kept = benchmark(IMPLEMENTATIONS[implementation](*case))
    assert len(kept) == (n if policy == "none" else video_token_budget(n, RETENTION))
    np.testing.assert_array_equal(kept, numpy_of(*case)())
