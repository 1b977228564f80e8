"""The budget, Stage I and Stage II on their own: by hand and by property."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.selection import (
    grid_order,
    prune_grid_uniform,
    prune_spatially_uniform,
    retain_top_p,
    select_video_tokens,
    video_token_budget,
)
from tests.support.selection_cases import (
    assert_same,
    grids,
    retentions,
    score_lists,
    seeds,
    shares,
    steady,
)


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
