"""Which video tokens are kept: by hand, by property, and every error."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
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

# Other work on the machine must not fail a property.
steady = settings(deadline=None)

SCORED = ("specvlm", "specvlm-grid", "attention")
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
def scored_grids(draw):
    grid = draw(grids)
    n = math.prod(grid)
    return np.array(draw(st.lists(score_values, min_size=n, max_size=n)), np.float32), grid


def assert_same(actual, expected):
    assert actual.dtype == np.int64
    np.testing.assert_array_equal(actual, np.array(expected, dtype=np.int64))


@pytest.mark.parametrize(
    ("n", "retention", "budget"),
    [
        (0, 0.1, 0),
        (1, 0.001, 1),
        (1, 1.0, 1),
        (9, 0.1, 1),
        (19, 0.1, 1),
        (20, 0.1, 2),
        (1000, 1 - 0.9, 100),
        (1000, 1.0, 1000),
        (25_088, 0.1, 2508),
    ],
)
def test_the_budget_is_the_kept_share_rounded_down(n, retention, budget):
    assert video_token_budget(n, retention) == budget


@steady
@given(n=st.integers(1, 10_000), percent=st.integers(1, 100))
def test_the_budget_of_whole_percents_loses_nothing_to_rounding(n, percent):
    assert video_token_budget(n, 1 - (100 - percent) / 100) == max(1, n * percent // 100)


@steady
@given(n=st.integers(0, 10**6), low=retentions, high=retentions)
def test_the_budget_grows_with_retention_and_stays_within_n(n, low, high):
    low, high = min(low, high), max(low, high)
    assert min(n, 1) <= video_token_budget(n, low) <= video_token_budget(n, high) <= n


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.0, []),
        (0.4, [2]),
        (0.5, [2]),
        (0.5001, [1, 2]),
        (0.75, [1, 2]),
        (0.8, [0, 1, 2]),
        (0.875, [0, 1, 2]),
        (0.9, [0, 1, 2, 4]),
        (1.0, [0, 1, 2, 4]),
    ],
)
def test_top_p_keeps_the_fewest_tokens_that_hold_the_mass(top_p, kept):
    # Ranked: 2 (1/2), 1 (1/4), then the tie 0 and 4 (1/8), and 3 without mass.
    assert_same(retain_top_p([0.125, 0.25, 0.5, 0.0, 0.125], top_p, 5), kept)


def test_top_p_is_a_share_of_the_mass_not_a_mass():
    assert_same(retain_top_p([0.001, 0.002, 0.001], 0.5, 3), [1])


def test_top_p_breaks_ties_by_lower_index():
    assert_same(retain_top_p([1.0, 1.0, 1.0, 1.0], 0.5, 4), [0, 1])


def test_the_budget_cuts_the_lowest_ranked_tokens():
    assert_same(retain_top_p([0.1, 0.3, 0.2, 0.4], 1.0, 2), [1, 3])
    assert_same(retain_top_p([0.1, 0.3, 0.2, 0.4], 1.0, 0), [])


@pytest.mark.parametrize("scores", [[], [0.0], [0.0, -0.0, 0.0]])
def test_top_p_keeps_nothing_where_there_is_no_mass(scores):
    assert_same(retain_top_p(scores, 1.0, 3), [])


def test_mass_is_summed_beyond_float32():
    # In float32 1 + 2**-25 is 1, so the mass would already be whole after one token.
    scores = np.array([1.0, 2.0**-25, 2.0**-25], np.float32)
    assert_same(retain_top_p(scores, 1.0, 3), [0, 1, 2])


@steady
@given(scores=score_lists, top_p=shares)
def test_one_token_fewer_would_hold_less_than_the_mass(scores, top_p):
    scores = np.array(scores, np.float32)
    kept = retain_top_p(scores, top_p, scores.size)
    prefix = [0.0]
    for score in sorted(scores.tolist(), reverse=True):
        prefix.append(prefix[-1] + score)
    assert prefix[kept.size] >= top_p * prefix[-1]
    assert kept.size == 0 or prefix[kept.size - 1] < top_p * prefix[-1]


@steady
@given(scores=score_lists, top_p=shares, budget=st.integers(0, 130))
def test_no_dropped_token_outranks_a_retained_one(scores, top_p, budget):
    scores = np.array(scores, np.float32)
    kept = retain_top_p(scores, top_p, budget)
    assert kept.size <= budget
    ranked = sorted(range(scores.size), key=lambda index: (-scores[index], index))
    assert_same(kept, sorted(ranked[: kept.size]))


@steady
@given(scores=score_lists, low=shares, high=shares, budget=st.integers(0, 130))
def test_a_larger_top_p_retains_a_superset(scores, low, high, budget):
    low, high = min(low, high), max(low, high)
    assert set(retain_top_p(scores, low, budget)) <= set(retain_top_p(scores, high, budget))


@steady
@given(
    scores=st.lists(st.floats(0.0, 1.0, width=32), max_size=60, unique=True),
    top_p=shares,
    seed=seeds,
)
def test_stage_one_follows_the_tokens_when_they_move(scores, top_p, seed):
    scores = np.array(scores, np.float32)
    order = np.random.default_rng(seed).permutation(scores.size)
    moved = retain_top_p(scores[order], top_p, scores.size)
    assert_same(np.sort(order[moved]), retain_top_p(scores, top_p, scores.size))


@pytest.mark.parametrize(
    ("size", "count", "kept"),
    [
        (0, 0, []),
        (5, 0, []),
        (1, 1, [0]),
        (5, 1, [0]),
        (5, 2, [0, 4]),
        (5, 3, [0, 2, 4]),
        (6, 3, [0, 2, 5]),
        (10, 4, [0, 3, 6, 9]),
        (8, 5, [0, 1, 3, 5, 7]),
        (5, 5, [0, 1, 2, 3, 4]),
    ],
)
def test_stage_two_spaces_candidates_evenly(size, count, kept):
    assert_same(prune_spatially_uniform(np.arange(size), count), kept)


def test_stage_two_returns_the_candidates_themselves():
    assert_same(prune_spatially_uniform([3, 8, 9, 20, 31], 3), [3, 9, 31])


@steady
@given(size=st.integers(2, 3000), data=st.data())
def test_stage_two_keeps_both_ends_and_even_gaps(size, data):
    count = data.draw(st.integers(2, size))
    kept = prune_spatially_uniform(np.arange(size), count)
    gaps = np.diff(kept)
    assert (kept[0], kept[-1], kept.size) == (0, size - 1, count)
    assert 1 <= gaps.min() <= gaps.max() <= gaps.min() + 1
    assert_same(kept, [i * (size - 1) // (count - 1) for i in range(count)])


def test_the_grid_order_is_a_hilbert_curve():
    assert_same(grid_order((1, 2, 2)), [0, 2, 3, 1])
    assert_same(grid_order((2, 1, 3)), [0, 1, 2, 3, 4, 5])
    # Row by row, when the curve visits each cell.
    visits = [[0, 1, 14, 15], [3, 2, 13, 12], [4, 7, 8, 11], [5, 6, 9, 10]]
    assert_same(np.argsort(grid_order((1, 4, 4))).reshape(4, 4), visits)


@pytest.mark.parametrize("side", [1, 2, 4, 8, 16, 32])
def test_the_curve_of_a_power_of_two_square_steps_to_a_neighbour(side):
    y, x = np.divmod(grid_order((1, side, side)), side)
    assert (np.abs(np.diff(y)) + np.abs(np.diff(x)) == 1).all()
    assert (y[0], x[0], y[-1], x[-1]) == (0, 0, 0, side - 1)


@steady
@given(grid=grids)
def test_the_grid_order_visits_every_token_frame_by_frame(grid):
    order = grid_order(grid)
    assert_same(np.sort(order), np.arange(math.prod(grid)))
    area = grid[1] * grid[2]
    assert_same(order // area, np.repeat(np.arange(grid[0]), area))
    assert_same(order % area, np.tile(order[:area], grid[0]))


@pytest.mark.parametrize(
    ("candidates", "count", "kept"),
    [
        ([], 0, []),
        (range(8), 0, []),
        # Along the curve: 0 2 3 1 | 4 6 7 5.
        (range(8), 1, [4]),
        (range(8), 2, [3, 7]),
        (range(8), 4, [1, 2, 5, 6]),
        (range(8), 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        # Along the curve: 0 3 1 | 6 5.
        ([0, 1, 3, 5, 6], 2, [3, 6]),
    ],
)
def test_the_grid_stage_keeps_the_middle_of_each_stretch(candidates, count, kept):
    assert_same(prune_grid_uniform(candidates, count, (2, 2, 2)), kept)


@steady
@given(grid=grids, seed=seeds, data=st.data())
def test_the_grid_stage_keeps_exactly_count_distinct_candidates(grid, seed, data):
    n = math.prod(grid)
    rng = np.random.default_rng(seed)
    candidates = rng.permutation(n)[: data.draw(st.integers(0, n))]
    count = data.draw(st.integers(0, candidates.size))
    kept = prune_grid_uniform(candidates, count, grid)
    assert kept.size == count
    assert (np.diff(kept) > 0).all()
    assert set(kept) <= set(candidates)
    assert_same(prune_grid_uniform(np.sort(candidates), count, grid), kept)


@steady
@given(grid=grids, data=st.data())
def test_the_grid_stage_treats_frames_alike(grid, data):
    n = math.prod(grid)
    count = data.draw(st.integers(0, n))
    kept = prune_grid_uniform(np.arange(n), count, grid)
    per_frame = np.bincount(kept // (grid[1] * grid[2]), minlength=grid[0])
    assert per_frame.max() - per_frame.min() <= 1


@pytest.mark.parametrize("blocks", [2, 4, 8])
def test_the_grid_stage_puts_one_token_into_every_block_of_a_frame(blocks):
    side = 16
    kept = prune_grid_uniform(np.arange(3 * side * side), 3 * blocks * blocks, (3, side, side))
    frame, y, x = np.unravel_index(kept, (3, side, side))
    size = side // blocks
    cells = (frame * blocks + y // size) * blocks + x // size
    assert_same(np.sort(cells), np.arange(3 * blocks * blocks))


def test_the_grid_stage_leaves_no_stripes_where_prompt_order_does():
    # Twenty columns and one token kept in twenty: prompt order stays near one column.
    grid, retention = (8, 12, 20), 0.05
    ones = np.ones(math.prod(grid))

    def widest_hole(policy):
        kept = select_video_tokens(ones, retention, policy=policy, grid=grid)
        worst = 0.0
        for frame in range(grid[0]):
            y, x = np.divmod(kept[kept // 240 == frame] % 240, 20)
            rows, columns = np.divmod(np.arange(240), 20)
            distance = np.hypot(rows[:, None] - y, columns[:, None] - x)
            worst = max(worst, distance.min(axis=1).max())
        return worst

    assert widest_hole("uniform") > 15
    assert widest_hole("uniform-grid") < 5


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
        selection = select_in_stages(scores, retention, top_p, policy, grid, seed)
        kept = selection.indices
        assert kept.dtype == np.int64
        assert kept.size == (n if policy == "none" else video_token_budget(n, retention))
        assert kept[0] >= 0
        assert kept[-1] < n
        assert (np.diff(kept) > 0).all()
        assert (np.diff(selection.stage_one) > 0).all()
        assert (np.diff(selection.stage_two) > 0).all()
        assert not selection.stage_one.size or policy in SCORED
        assert_same(select_video_tokens(scores, retention, top_p, policy, grid, seed), kept)


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
    for policy in set(POLICIES) - set(SCORED):
        assert_same(
            select_video_tokens(other, retention, policy=policy, grid=grid, seed=seed),
            select_video_tokens(scores, retention, policy=policy, grid=grid, seed=seed),
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
    assert_same(select_video_tokens([score], 0.01, policy=policy, grid=(1, 1, 1)), [0])


@pytest.mark.parametrize("policy", POLICIES)
def test_full_retention_prunes_nothing(policy):
    scores = np.random.default_rng(0).random(24)
    kept = select_video_tokens(scores, 1.0, policy=policy, grid=(2, 3, 4))
    assert_same(kept, np.arange(24))


@pytest.mark.parametrize(
    ("policy", "fallback"),
    [("specvlm", "uniform"), ("attention", "uniform"), ("specvlm-grid", "uniform-grid")],
)
def test_scores_without_mass_fall_back_to_even_spacing_and_are_counted(policy, fallback):
    grid = (4, 5, 6)
    selection = select_in_stages(np.zeros(120), 0.1, policy=policy, grid=grid)
    assert selection.fallbacks == 1
    assert_same(selection.stage_one, [])
    expected = select_video_tokens(np.zeros(120), 0.1, policy=fallback, grid=grid)
    assert_same(selection.stage_two, expected)


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - set(SCORED)))
def test_policies_without_scores_never_count_a_fallback(policy):
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
        alone = select_in_stages(TEN, 0.4, 0.6, policy, grid, seed=3)
        listed = select_per_video(TEN, [10], 0.4, 0.6, policy, [grid], seed=3)
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
    with pytest.raises(ValueError, match=r"policy must be one of specvlm, .*none, got 'best'"):
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
