"""The torch selection keeps what the reference keeps, index for index."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference.selection as reference
from specvlm_sglang import policies
from specvlm_sglang.pruning.selection import (
    select_per_video,
    select_video_tokens,
    video_token_budget,
)

GRIDS = [(1, 1, 1), (4, 3, 5), (7, 8, 13), (16, 1, 9), (3, 23, 2)]


def draw_scores(kind: str, n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return {
        "peaked": rng.gamma(0.1, 1.0, n),
        "flat": rng.uniform(0.9, 1.0, n),
        "ties": rng.integers(0, 4, n).astype(float),
        "one": np.eye(1, n, n // 2)[0],
        "zero": np.zeros(n),
    }[kind].astype(np.float32)


def assert_same(scores: np.ndarray, **options: object) -> None:
    expected = reference.select_in_stages(scores, **options)  # type: ignore[arg-type]
    found = select_video_tokens(torch.from_numpy(scores), **options)  # type: ignore[arg-type]
    assert found.indices.tolist() == expected.indices.tolist()
    assert found.indices[found.stage_one].tolist() == expected.stage_one.tolist()
    assert bool(found.fallback) == bool(expected.fallbacks)


def test_the_policies_are_the_references() -> None:
    assert policies.POLICIES == reference.POLICIES


@pytest.mark.parametrize("kind", ["peaked", "flat", "ties", "one", "zero"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("policy", policies.POLICIES)
def test_every_policy_equals_the_reference(policy: str, grid: tuple[int, int, int], kind: str):
    n = int(np.prod(grid))
    scores = draw_scores(kind, n, seed=n)
    for retention in (0.02, 0.1, 0.37, 0.5, 0.99, 1.0):
        for top_p in (0.0, 0.4, 1.0):
            assert_same(scores, retention=retention, top_p=top_p, policy=policy, grid=grid, seed=3)


@settings(deadline=None, max_examples=200)
@given(
    n=st.integers(0, 400),
    kind=st.sampled_from(["peaked", "flat", "ties", "zero"]),
    retention=st.floats(0.001, 1.0),
    top_p=st.floats(0.0, 1.0),
    policy=st.sampled_from(
        [policy for policy in policies.POLICIES if policy not in policies.NEED_GRID]
    ),
)
def test_any_length_equals_the_reference(
    n: int, kind: str, retention: float, top_p: float, policy: str
) -> None:
    scores = draw_scores(kind, n, seed=n) if n else np.zeros(0, dtype=np.float32)
    assert_same(scores, retention=retention, top_p=top_p, policy=policy)


@pytest.mark.parametrize("policy", policies.POLICIES)
def test_videos_with_budgets_of_their_own_equal_the_reference(policy: str) -> None:
    grids = [(4, 3, 5), (2, 2, 2), (7, 8, 13)]
    lengths = [int(np.prod(grid)) for grid in grids]
    scores = draw_scores("peaked", sum(lengths), seed=1)
    scores[lengths[0] : lengths[0] + lengths[1]] = 0
    expected = reference.select_per_video(
        scores, lengths, retention=0.2, policy=policy, grids=grids, seed=5
    )
    found = select_per_video(
        torch.from_numpy(scores), lengths, retention=0.2, policy=policy, grids=grids, seed=5
    )
    assert found.indices.tolist() == expected.indices.tolist()
    assert bool(found.fallback) == (expected.fallbacks > 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("policy", policies.NEED_SCORES)
def test_scores_that_are_not_finite_fall_back_to_uniform_spacing(policy: str, bad: float) -> None:
    scores = draw_scores("peaked", 60, seed=2)
    scores[7] = bad
    spacing = "uniform-grid" if policy == "specvlm-grid" else "uniform"
    expected = reference.select_in_stages(np.zeros(60), 0.2, policy=spacing, grid=(4, 3, 5))
    found = select_video_tokens(
        torch.from_numpy(scores), retention=0.2, policy=policy, grid=(4, 3, 5)
    )
    assert found.indices.tolist() == expected.indices.tolist()
    assert bool(found.fallback)
    assert not found.stage_one.any()


@pytest.mark.parametrize("n", [0, 1, 2, 999, 1000, 128_000])
@pytest.mark.parametrize("retention", [0.001, 0.1, 1 - 0.9, 0.5, 1.0])
def test_the_budget_equals_the_reference(n: int, retention: float) -> None:
    assert video_token_budget(n, retention) == reference.video_token_budget(n, retention)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"retention": 0.0}, "retention=0.0"),
        ({"retention": 1.5}, "retention=1.5"),
        ({"retention": 0.1, "top_p": -0.1}, "top_p=-0.1"),
        ({"retention": 0.1, "policy": "best"}, "policy='best'"),
        ({"retention": 0.1, "policy": "frames"}, "grid=None"),
        ({"retention": 0.1, "grid": (2, 2, 2)}, r"grid=\(2, 2, 2\)"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        select_video_tokens(torch.ones(9), **options)  # type: ignore[arg-type]
