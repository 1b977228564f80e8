"""Which video tokens each policy keeps: by hand, by property, and every error."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.selection import (
    POLICIES,
    grid_order,
    prune_grid_uniform,
    prune_spatially_uniform,
    retain_top_p,
    select_in_stages,
    select_per_video,
    select_video_tokens,
    video_token_budget,
)
from tests.support.selection_cases import (
    FEATURED,
    NESTED,
    SCORED,
    assert_same,
    features_of,
    retentions,
    scored_grids,
    seeds,
    shares,
    steady,
)

TEN = [0.05, 0.0, 0.3, 0.05, 0.0, 0.1, 0.2, 0.2, 0.0, 0.1]


@pytest.mark.parametrize(
    ("policy", "stage_one", "stage_two"),
    [
        # 40 % of the mass is in tokens 2 and 6; the rest 0 1 3 4 5 7 8 9 is spaced: 0 and 9.
        ("specvlm", [2, 6], [0, 9]),
        ("attention", [2, 5, 6, 7], []),
        ("uniform", [], [0, 3, 6, 9]),
        ("window-front", [], [0, 1, 2, 3]),
        ("window-middle", [], [3, 4, 5, 6]),
        ("window-back", [], [6, 7, 8, 9]),
        ("none", [], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_a_policy_worked_out_by_hand(policy, stage_one, stage_two):
    selection = select_in_stages(TEN, 0.4, policy=policy)
    assert_same(selection.stage_one, stage_one)
    assert_same(selection.stage_two, stage_two)
    assert selection.fallbacks == 0
    kept = select_video_tokens(TEN, 0.4, policy=policy)
    assert_same(kept, sorted(stage_one + stage_two))


def test_the_middle_window_leans_to_the_front_when_it_cannot_be_centred():
    assert_same(select_video_tokens(np.ones(10), 0.5, policy="window-middle"), [2, 3, 4, 5, 6])


def test_the_grid_policies_worked_out_by_hand():
    scores = [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9, 0.1]
    # Along the curve: 0 2 3 1 | 4 6 7 5; Stage I takes 6.
    selection = select_in_stages(scores, 0.5, policy="specvlm-grid", grid=(2, 2, 2))
    assert_same(selection.stage_one, [6])
    assert_same(selection.stage_two, [1, 2, 7])
    selection = select_in_stages(scores, 0.5, policy="uniform-grid", grid=(2, 2, 2))
    assert_same(selection.stage_one, [])
    assert_same(selection.stage_two, [1, 2, 5, 6])


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (0.1, [0]),
        (0.25, [0, 1, 2]),
        (0.5, [0, 1, 2, 9, 10, 11]),
        (0.6, [0, 1, 2, 3, 4, 5, 9]),
        (0.7, [0, 1, 2, 3, 4, 5, 9, 11]),
    ],
)
def test_frames_are_kept_whole_except_for_the_last(retention, kept):
    assert_same(select_video_tokens(np.ones(12), retention, policy="frames", grid=(4, 1, 3)), kept)


def test_stage_one_alone_fills_a_budget_smaller_than_its_mass():
    selection = select_in_stages(np.ones(100), 0.1, top_p=0.9)
    assert_same(selection.stage_one, np.arange(10))
    assert_same(selection.stage_two, [])


def test_top_p_zero_is_the_uniform_policy():
    kept = select_video_tokens(TEN, 0.4, top_p=0.0)
    assert_same(kept, select_video_tokens(TEN, 0.4, policy="uniform"))
    assert select_in_stages(TEN, 0.4, top_p=0.0).fallbacks == 0


def test_random_depends_on_the_seed_alone():
    scores = np.ones(1000)
    first = select_video_tokens(scores, 0.1, policy="random", seed=1)
    assert_same(select_video_tokens(2 * scores, 0.1, policy="random", seed=1), first)
    assert set(select_video_tokens(scores, 0.1, policy="random", seed=2)) != set(first)


def test_random_reaches_every_token_about_equally_often():
    hits = np.zeros(20, np.int64)
    for seed in range(1000):
        hits[select_video_tokens(np.ones(20), 0.25, policy="random", seed=seed)] += 1
    # 250 expected with a standard deviation of 14.
    assert 180 < hits.min() <= hits.max() < 320


@steady
@given(case=scored_grids(), retention=retentions, top_p=shares, seed=seeds)
def test_every_policy_keeps_exactly_its_budget(case, retention, top_p, seed):
    scores, grid = case
    n = scores.size
    for policy in POLICIES:
        asked = scores, retention, top_p, policy, grid, seed, features_of(n)
        selection = select_in_stages(*asked)
        kept = selection.indices
        assert kept.dtype == np.int64
        assert kept.size == (n if policy == "none" else video_token_budget(n, retention))
        assert kept[0] >= 0
        assert kept[-1] < n
        assert (np.diff(kept) > 0).all()
        assert (np.diff(selection.stage_one) > 0).all()
        assert (np.diff(selection.stage_two) > 0).all()
        ranks = policy in SCORED + FEATURED and policy != "floc"
        assert not selection.stage_one.size or ranks
        assert_same(select_video_tokens(*asked), kept)


@steady
@given(case=scored_grids(), retention=retentions, top_p=shares)
def test_specvlm_is_the_union_of_its_two_stages(case, retention, top_p):
    scores, grid = case
    budget = video_token_budget(scores.size, retention)
    stage_one = retain_top_p(scores, top_p, budget)
    rest = np.setdiff1d(np.arange(scores.size), stage_one)
    flat = select_in_stages(scores, retention, top_p)
    spaced = select_in_stages(scores, retention, top_p, "specvlm-grid", grid)
    assert_same(flat.stage_one, stage_one)
    assert_same(spaced.stage_one, stage_one)
    assert_same(flat.stage_two, prune_spatially_uniform(rest, budget - stage_one.size))
    assert_same(spaced.stage_two, prune_grid_uniform(rest, budget - stage_one.size, grid))


@steady
@given(case=scored_grids(), low=retentions, high=retentions, seed=seeds)
def test_more_retention_keeps_a_superset_where_policies_nest(case, low, high, seed):
    scores, grid = case
    if not scores.any():
        scores = scores + np.float32(1)
    low, high = min(low, high), max(low, high)
    for policy in NESTED:
        fewer = select_video_tokens(scores, low, policy=policy, seed=seed)
        more = select_video_tokens(scores, high, policy=policy, seed=seed)
        assert set(fewer) <= set(more)
    for policy in ("specvlm", "specvlm-grid"):
        fewer = select_in_stages(scores, low, policy=policy, grid=grid)
        more = select_in_stages(scores, high, policy=policy, grid=grid)
        assert set(fewer.stage_one) <= set(more.stage_one)


@steady
@given(case=scored_grids(), retention=retentions, seed=seeds)
def test_policies_without_scores_ignore_them(case, retention, seed):
    scores, grid = case
    other = np.random.default_rng(seed).permutation(scores)
    options = {"grid": grid, "seed": seed, "features": features_of(scores.size)}
    for policy in set(POLICIES) - {*SCORED, "attention-change-spread", "scope", "specvlm-spread"}:
        assert_same(
            select_video_tokens(other, retention, policy=policy, **options),
            select_video_tokens(scores, retention, policy=policy, **options),
        )


@steady
@given(
    scores=st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=60, unique=True),
    retention=retentions,
    seed=seeds,
)
def test_attention_follows_the_tokens_when_they_move(scores, retention, seed):
    scores = np.array([*scores, 2.0], np.float32)
    order = np.random.default_rng(seed).permutation(scores.size)
    moved = select_video_tokens(scores[order], retention, policy="attention")
    kept = select_video_tokens(scores, retention, policy="attention")
    assert_same(np.sort(order[moved]), kept)


@steady
@given(case=scored_grids(), retention=retentions, exponent=st.integers(-20, 20))
def test_scores_matter_only_up_to_a_common_factor(case, retention, exponent):
    # A power of two scales every sum exactly; tiny scores would leave float32's normal range.
    scores, grid = case
    scores = np.where(scores < 1e-20, np.float32(0), scores)
    for policy in SCORED:
        assert_same(
            select_video_tokens(scores * np.float32(2.0**exponent), retention, 0.4, policy, grid),
            select_video_tokens(scores, retention, 0.4, policy, grid),
        )


@pytest.mark.parametrize("policy", POLICIES)
def test_a_request_without_video_keeps_nothing(policy):
    selection = select_in_stages([], 0.1, policy=policy)
    assert_same(selection.indices, [])
    assert selection.fallbacks == 0


@pytest.mark.parametrize("score", [0.0, 0.5])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_single_token_is_always_kept(policy, score):
    options = {"grid": (1, 1, 1), "features": features_of(1)}
    assert_same(select_video_tokens([score], 0.01, policy=policy, **options), [0])


@pytest.mark.parametrize("policy", POLICIES)
def test_full_retention_prunes_nothing(policy):
    scores = np.random.default_rng(0).random(24)
    kept = select_video_tokens(scores, 1.0, policy=policy, grid=(2, 3, 4), features=features_of(24))
    assert_same(kept, np.arange(24))


@pytest.mark.parametrize(
    ("policy", "fallback"),
    [
        ("specvlm", "uniform"),
        ("attention", "uniform"),
        ("specvlm-grid", "uniform-grid"),
        ("attention-spread", "uniform"),
        ("attention-change-spread", "uniform"),
        ("scope", "uniform"),
    ],
)
def test_scores_without_mass_fall_back_to_even_spacing_and_are_counted(policy, fallback):
    grid = (4, 5, 6)
    selection = select_in_stages(
        np.zeros(120), 0.1, policy=policy, grid=grid, features=features_of(120)
    )
    assert selection.fallbacks == 1
    assert_same(selection.stage_one, [])
    expected = select_video_tokens(np.zeros(120), 0.1, policy=fallback, grid=grid)
    assert_same(selection.stage_two, expected)


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {*SCORED, *FEATURED}))
def test_policies_that_rank_nothing_never_count_a_fallback(policy):
    assert select_in_stages(np.zeros(6), 0.5, policy=policy, grid=(1, 2, 3)).fallbacks == 0


def test_scores_are_read_in_float32():
    # Equal in float32, so the tie goes to the lower index.
    assert_same(select_video_tokens([1.0, 1.0 + 1e-12], 0.5, policy="attention"), [0])


def test_selecting_leaves_the_scores_alone():
    scores = np.random.default_rng(0).random(50).astype(np.float32)
    before = scores.copy()
    select_video_tokens(scores, 0.2)
    np.testing.assert_array_equal(scores, before)


def test_each_video_gets_a_budget_of_its_own():
    scores = np.concatenate([np.full(10, 1e-6), np.zeros(4), TEN])
    selection = select_per_video(scores, [10, 0, 4, 10], 0.4)
    parts = [select_in_stages(scores[a:b], 0.4) for a, b in ((0, 10), (10, 14), (14, 24))]
    assert_same(selection.stage_one, [0, 1, 2, 3, 16, 20])
    assert_same(selection.stage_two, [10, 14, 23])
    assert selection.indices.size == sum(part.indices.size for part in parts) == 9
    assert selection.fallbacks == 1


def test_one_video_alone_is_the_plain_selection():
    grid = (2, 1, 5)
    for policy in POLICIES:
        alone = select_in_stages(TEN, 0.4, 0.6, policy, grid, 3, features_of(10))
        listed = select_per_video(TEN, [10], 0.4, 0.6, policy, [grid], 3, features_of(10))
        assert_same(listed.stage_one, alone.stage_one)
        assert_same(listed.stage_two, alone.stage_two)


def test_each_video_has_a_grid_and_a_seed_of_its_own():
    scores = np.ones(42)
    kept = select_per_video(
        scores, [24, 18], 0.25, policy="uniform-grid", grids=[(2, 3, 4), (3, 2, 3)]
    ).indices
    first = select_video_tokens(np.ones(24), 0.25, policy="uniform-grid", grid=(2, 3, 4))
    second = select_video_tokens(np.ones(18), 0.25, policy="uniform-grid", grid=(3, 2, 3))
    assert_same(kept, [*first, *(second + 24)])
    kept = select_per_video(np.ones(400), [200, 200], 0.1, policy="random", seed=5).indices
    second = select_video_tokens(np.ones(200), 0.1, policy="random", seed=6)
    assert_same(kept[kept >= 200] - 200, second)
    assert set(kept[kept < 200]) != set(second)


def test_no_videos_keep_nothing():
    assert_same(select_per_video([], [], 0.1).indices, [])


@steady
@given(
    lengths=st.lists(st.integers(0, 30), max_size=5),
    retention=retentions,
    policy=st.sampled_from(["specvlm", "attention", "uniform", "random", "window-middle"]),
    seed=st.integers(0, 100),
)
def test_a_video_keeps_its_share_beside_any_other(lengths, retention, policy, seed):
    scores = np.random.default_rng(seed).random(sum(lengths))
    kept = select_per_video(scores, lengths, retention, policy=policy, seed=seed).indices
    assert (np.diff(kept) > 0).all()
    start = 0
    for length in lengths:
        inside = (kept >= start) & (kept < start + length)
        assert inside.sum() == video_token_budget(length, retention)
        start += length
    assert start == scores.size


@pytest.mark.parametrize("retention", [0, -0.1, 1.0001, math.nan, math.inf])
def test_retention_outside_its_range_is_an_error(retention):
    message = r"retention must lie in \(0, 1\], got "
    with pytest.raises(ValueError, match=message):
        video_token_budget(10, retention)
    for policy in POLICIES:
        with pytest.raises(ValueError, match=message):
            select_video_tokens(np.ones(6), retention, policy=policy, grid=(1, 2, 3))


@pytest.mark.parametrize("top_p", [-0.01, 1.01, math.nan])
def test_top_p_outside_its_range_is_an_error(top_p):
    message = r"top_p must lie in \[0, 1\], got "
    with pytest.raises(ValueError, match=message):
        retain_top_p([1.0], top_p, 1)
    with pytest.raises(ValueError, match=message):
        select_video_tokens([1.0], 0.5, top_p, policy="uniform")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.25, 1e39])
def test_scores_that_are_not_finite_and_non_negative_are_an_error(value):
    message = r"scores must be finite and at least 0, got .* at index 1"
    with pytest.raises(ValueError, match=message):
        retain_top_p([0.5, value, value], 0.4, 2)
    with pytest.raises(ValueError, match=message):
        select_video_tokens([0.5, value], 0.5, policy="window-back")
    with pytest.raises(ValueError, match=message):
        select_per_video([0.5, value], [1, 1], 0.5)


@pytest.mark.parametrize("scores", [0.5, [[0.5, 0.5]]])
def test_scores_with_other_than_one_axis_are_an_error(scores):
    with pytest.raises(ValueError, match="scores must have one axis, got shape"):
        select_video_tokens(scores, 0.5)


def test_an_unknown_policy_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"policy must be one of specvlm, .*none, .*got 'best'"):
        select_video_tokens([1.0], 0.5, policy="best")


@pytest.mark.parametrize("policy", ["specvlm-grid", "uniform-grid", "frames"])
def test_a_grid_policy_without_a_grid_is_an_error(policy):
    with pytest.raises(ValueError, match=f"grid must be .* for policy '{policy}', got None"):
        select_video_tokens([1.0], 0.5, policy=policy)


@pytest.mark.parametrize("n", [0, 7])
def test_a_grid_of_another_size_is_an_error(n):
    with pytest.raises(ValueError, match=rf"as many tokens as scores, {n}, got \(1, 2, 3\)"):
        select_video_tokens(np.ones(n), 0.5, grid=(1, 2, 3))


@pytest.mark.parametrize("grid", [(2, 3), (0, 2, 3), (2, -1, 3), (1, 2, 3.0)])
def test_a_grid_of_other_than_three_positive_integers_is_an_error(grid):
    message = r"grid must be \(frames, rows, columns\), each at least 1, got "
    with pytest.raises(ValueError, match=message):
        grid_order(grid)
    with pytest.raises(ValueError, match=message):
        select_video_tokens(np.ones(6), 0.5, grid=grid)


@pytest.mark.parametrize("candidates", [[8], [0, -1]])
def test_candidates_outside_the_grid_are_an_error(candidates):
    with pytest.raises(ValueError, match=r"candidates must lie in \[0, 7\], got "):
        prune_grid_uniform(candidates, 1, (2, 2, 2))


@pytest.mark.parametrize("count", [-1, 4])
def test_a_count_outside_the_candidates_is_an_error(count):
    message = rf"count must lie in \[0, 3\], got {count}"
    with pytest.raises(ValueError, match=message):
        prune_spatially_uniform([0, 1, 2], count)
    with pytest.raises(ValueError, match=message):
        prune_grid_uniform([0, 1, 2], count, (1, 2, 2))


def test_candidates_with_two_axes_are_an_error():
    with pytest.raises(ValueError, match=r"candidates must have one axis, got shape \(1, 2\)"):
        prune_spatially_uniform([[0, 1]], 1)


def test_negative_sizes_and_seeds_are_errors():
    with pytest.raises(ValueError, match="n must be at least 0, got -1"):
        video_token_budget(-1, 0.5)
    with pytest.raises(ValueError, match="budget must be at least 0, got -1"):
        retain_top_p([1.0], 0.4, -1)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        select_video_tokens([1.0], 0.5, policy="random", seed=-1)


@pytest.mark.parametrize("lengths", [[3, 4], [5], [-1, 7]])
def test_video_lengths_that_do_not_add_up_are_an_error(lengths):
    with pytest.raises(ValueError, match="video_lengths must be at least 0 each and 6 in total"):
        select_per_video(np.ones(6), lengths, 0.5)


def test_grids_that_miss_a_video_are_an_error():
    with pytest.raises(ValueError, match="grids must have one entry for each of the 2 videos"):
        select_per_video(np.ones(6), [3, 3], 0.5, grids=[(1, 1, 3)])
