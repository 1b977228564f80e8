"""The torch selection keeps what the reference keeps, index for index."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference.selection as reference
from specvlm_sglang.pruning.budgets import video_token_budget
from specvlm_sglang.pruning.registry import shipped_policies
from specvlm_sglang.pruning.selection import select_per_video, select_video_tokens
from tests.support.selection_cases import features_of

POLICIES = tuple(shipped_policies())
NEED_GRID = [name for name, policy in shipped_policies().items() if policy.needs_grid]
NEED_SCORES = [name for name, policy in shipped_policies().items() if policy.needs_scores]
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
    options = {"top_p": 0.4, "features": features_of(len(scores)), **options}
    vectors = torch.from_numpy(options["features"])  # type: ignore[arg-type]
    expected = reference.select_in_stages(scores, **options)  # type: ignore[arg-type]
    found = select_video_tokens(
        torch.from_numpy(scores),
        **{**options, "features": vectors},  # type: ignore[arg-type]
    )
    assert found.indices.tolist() == expected.indices.tolist()
    assert found.indices[found.stage_one].tolist() == expected.stage_one.tolist()
    assert bool(found.fallback) == bool(expected.fallbacks)


def test_the_policies_are_the_references() -> None:
    assert POLICIES == reference.POLICIES


@pytest.mark.parametrize("kind", ["peaked", "flat", "ties", "one", "zero"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_equals_the_reference(policy: str, grid: tuple[int, int, int], kind: str):
    n = int(np.prod(grid))
    scores = draw_scores(kind, n, seed=n)
    # Only two stages read top_p.
    shares = (0.0, 0.4, 1.0) if policy in ("specvlm", "specvlm-grid", "change") else (0.4,)
    for retention in (0.02, 0.1, 0.37, 0.5, 0.99, 1.0):
        for top_p in shares:
            assert_same(scores, retention=retention, top_p=top_p, policy=policy, grid=grid, seed=3)


@settings(deadline=None, max_examples=200)
@given(
    n=st.integers(0, 400),
    kind=st.sampled_from(["peaked", "flat", "ties", "zero"]),
    retention=st.floats(0.001, 1.0),
    top_p=st.floats(0.0, 1.0),
    policy=st.sampled_from([policy for policy in POLICIES if policy not in NEED_GRID]),
)
def test_any_length_equals_the_reference(
    n: int, kind: str, retention: float, top_p: float, policy: str
) -> None:
    scores = draw_scores(kind, n, seed=n) if n else np.zeros(0, dtype=np.float32)
    assert_same(scores, retention=retention, top_p=top_p, policy=policy)


@settings(deadline=None, max_examples=100)
@given(
    frames=st.integers(1, 9),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    kind=st.sampled_from(["peaked", "flat", "ties", "one", "zero"]),
    retention=st.floats(0.001, 1.0),
    top_p=st.floats(0.0, 1.0),
    policy=st.sampled_from(NEED_GRID),
)
def test_any_grid_equals_the_reference(
    frames: int, rows: int, columns: int, kind: str, retention: float, top_p: float, policy: str
) -> None:
    scores = draw_scores(kind, frames * rows * columns, seed=rows * columns)
    grid = (frames, rows, columns)
    assert_same(scores, retention=retention, top_p=top_p, policy=policy, grid=grid)


@settings(deadline=None, max_examples=200)
@given(
    # Few distinct values, among them the smallest and nearly the largest float32.
    scores=st.lists(st.sampled_from([0.0, -0.0, 1e-45, 1e-7, 0.25, 0.5, 1e38]), max_size=40),
    retention=st.floats(0.01, 1.0),
    top_p=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    policy=st.sampled_from(["specvlm", "attention"]),
)
def test_ties_and_extreme_scores_equal_the_reference(
    scores: list[float], retention: float, top_p: float, policy: str
) -> None:
    assert_same(np.array(scores, np.float32), retention=retention, top_p=top_p, policy=policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_long_video_equals_the_reference(policy: str) -> None:
    grid = (64, 14, 26)
    scores = draw_scores("peaked", int(np.prod(grid)), seed=9)
    for retention in (0.05, 0.1):
        assert_same(scores, retention=retention, policy=policy, grid=grid, seed=1)


def test_one_seed_draws_one_permutation_whatever_the_order_of_requests() -> None:
    scores = np.ones(50, dtype=np.float32)
    for seed in (4, 5, 4):
        for retention in (0.5, 0.1):
            assert_same(scores, retention=retention, policy="random", seed=seed)


@settings(deadline=None, max_examples=100)
@given(
    lengths=st.lists(st.integers(0, 60), max_size=4),
    kind=st.sampled_from(["peaked", "ties", "zero"]),
    retention=st.floats(0.01, 1.0),
    policy=st.sampled_from(POLICIES),
)
def test_videos_with_budgets_of_their_own_equal_the_reference(
    lengths: list[int], kind: str, retention: float, policy: str
) -> None:
    n = sum(lengths)
    scores = draw_scores(kind, n, seed=n) if n else np.zeros(0, dtype=np.float32)
    # A video without tokens has no grid, and needs none.
    lengths = [length for length in lengths if length or policy not in NEED_GRID]
    grids = [(1, 1, length) for length in lengths] if policy in NEED_GRID else None
    options = {"retention": retention, "policy": policy, "grids": grids, "seed": 5, "top_p": 0.4}
    vectors = features_of(n)
    expected = reference.select_per_video(
        scores,
        lengths,
        features=vectors,
        **options,  # type: ignore[arg-type]
    )
    found = select_per_video(
        torch.from_numpy(scores),
        lengths,
        features=torch.from_numpy(vectors),
        **options,  # type: ignore[arg-type]
    )
    assert found.indices.tolist() == expected.indices.tolist()
    assert found.indices[found.stage_one].tolist() == expected.stage_one.tolist()
    assert bool(found.fallback) == (expected.fallbacks > 0)


def test_a_silent_video_falls_back_and_its_neighbours_do_not() -> None:
    scores = draw_scores("peaked", 90, seed=1)
    scores[30:60] = 0
    found = select_per_video(torch.from_numpy(scores), [30, 30, 30], retention=0.2, top_p=0.4)
    expected = reference.select_per_video(scores, [30, 30, 30], 0.2, 0.4)
    assert found.indices.tolist() == expected.indices.tolist()
    assert found.fallback
    silent = (found.indices >= 30) & (found.indices < 60)
    assert not found.stage_one[silent].any()
    assert found.stage_one[~silent].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), -1.0])
@pytest.mark.parametrize("policy", NEED_SCORES)
def test_scores_that_the_reference_refuses_fall_back_to_even_spacing(
    policy: str, bad: float
) -> None:
    scores = draw_scores("peaked", 60, seed=2)
    scores[7] = bad
    vectors = features_of(60)
    with pytest.raises(ValueError, match="scores"):
        reference.select_in_stages(scores, 0.2, policy=policy, grid=(4, 3, 5), features=vectors)
    spacing = "uniform-grid" if policy == "specvlm-grid" else "uniform"
    expected = reference.select_in_stages(np.zeros(60), 0.2, policy=spacing, grid=(4, 3, 5))
    found = select_video_tokens(
        torch.from_numpy(scores),
        retention=0.2,
        top_p=0.4,
        policy=policy,
        grid=(4, 3, 5),
        features=torch.from_numpy(vectors),
    )
    assert found.indices.tolist() == expected.indices.tolist()
    assert bool(found.fallback)
    assert not found.stage_one.any()


@pytest.mark.parametrize("policy", POLICIES)
def test_no_value_is_read_from_the_device(policy: str) -> None:
    # Meta tensors have no values: whatever would make the host wait for one raises.
    scores = torch.empty(60, device="meta")
    kept = 60 if policy == "none" else 12
    options = {"top_p": 0.4, "policy": policy, "features": torch.empty((60, 7), device="meta")}
    one = select_video_tokens(scores, retention=0.2, grid=(4, 3, 5), **options)
    each = select_per_video(
        scores, [36, 24], retention=0.25, grids=[(3, 3, 4), (2, 3, 4)], **options
    )
    assert one.indices.shape == one.stage_one.shape == (kept,)
    assert one.indices.is_meta
    assert one.fallback.is_meta
    assert each.indices.shape == each.stage_one.shape == (60 if policy == "none" else 15,)
    assert each.fallback.shape == ()


@pytest.mark.parametrize("n", [0, 1, 2, 999, 1000, 128_000])
@pytest.mark.parametrize("retention", [0.001, 0.1, 1 - 0.9, 0.5, 1.0])
def test_the_budget_equals_the_reference(n: int, retention: float) -> None:
    assert video_token_budget(n, retention) == reference.video_token_budget(n, retention)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"retention": 0.0}, "retention=0.0"),
        ({"retention": 1.5}, "retention=1.5"),
        ({"retention": float("nan")}, "retention=nan"),
        ({"retention": 0.0, "policy": "none"}, "retention=0.0"),
        ({"top_p": -0.1}, "top_p=-0.1"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"top_p": float("nan")}, "top_p=nan"),
        ({"policy": "best"}, "policy='best'"),
        ({"policy": "frames"}, "grid=None"),
        ({"policy": "random", "seed": -1}, "seed=-1"),
        ({"policy": "uniform", "seed": -1}, "seed=-1"),
        ({"grid": (2, 2, 2)}, r"grid=\(2, 2, 2\)"),
        ({"grid": (1, 9)}, r"grid=\(1, 9\)"),
        ({"grid": (-3, -3, 1)}, r"grid=\(-3, -3, 1\)"),
        ({"grid": (3.0, 3, 1)}, r"grid=\(3.0, 3, 1\)"),
    ],
)
def test_bad_arguments_are_named_where_the_reference_raises_too(
    options: dict[str, object], named: str
) -> None:
    options = {"retention": 0.1, "top_p": 0.4, **options}
    with pytest.raises(ValueError, match=named):
        select_video_tokens(torch.ones(9), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=named.partition("=")[0]):
        reference.select_in_stages(np.ones(9), **options)  # type: ignore[arg-type]


def test_scores_with_two_axes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scores of shape \[3, 3\]"):
        select_video_tokens(torch.ones(3, 3), retention=0.5, top_p=0.4)


@pytest.mark.parametrize("n", [-1, -1000])
def test_a_negative_number_of_tokens_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"n={n}"):
        video_token_budget(n, 0.1)


@pytest.mark.parametrize("lengths", [[4, 4], [-1, 10], [], [9, 1]])
def test_lengths_that_do_not_cover_the_scores_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="video_lengths"):
        select_per_video(torch.ones(9), lengths, retention=0.5, top_p=0.4)


def test_a_grid_for_another_number_of_videos_is_refused() -> None:
    with pytest.raises(ValueError, match="grids"):
        select_per_video(torch.ones(8), [4, 4], retention=0.5, top_p=0.4, grids=[(1, 2, 2)])
