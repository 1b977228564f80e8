"""Policies made of a scorer and a selector: by hand, against a plain form, by property."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import cover, features, spread
from reference.policies import SCORERS, SELECTORS, Question
from reference.selection import (
    COMPARED,
    POLICIES,
    retain_top_p,
    select_in_stages,
    select_per_video,
    select_video_tokens,
    video_token_budget,
    video_token_budgets,
)
from tests.support.selection_cases import (
    assert_same,
    features_of,
    retentions,
    scored_grids,
    seeds,
    shares,
    steady,
)

PAIRS = [f"{scorer}/{selector}" for scorer, selector in itertools.product(SCORERS, SELECTORS)]


def keep(scores, retention, policy, grid, vectors):
    return select_video_tokens(scores, retention, 0.4, policy, grid, 0, vectors)


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("specvlm", "attention/two-stage"),
        ("specvlm-grid", "attention/two-stage-grid"),
        ("attention", "attention/top-k"),
        ("attention-spread", "attention/spread"),
        ("attention-change-spread", "attention-change/spread"),
        ("scope", "root-attention/cover"),
        ("floc", "equal/cover"),
        ("change", "change/two-stage"),
        ("evs", "evs/top-k"),
        ("specvlm-spread", "attention-change/top-p-spread"),
    ],
)
def test_a_name_is_short_for_a_pair(name, pair):
    scores = np.random.default_rng(0).gamma(0.1, 1.0, 120)
    for retention in (0.1, 0.4):
        asked = retention, 0.4
        named = select_in_stages(scores, *asked, name, (8, 3, 5), 0, features_of(120))
        composed = select_in_stages(scores, *asked, pair, (8, 3, 5), 0, features_of(120))
        assert_same(named.stage_one, composed.stage_one)
        assert_same(named.stage_two, composed.stage_two)


@settings(steady, max_examples=20)
@given(case=scored_grids(), retention=retentions, top_p=shares, seed=seeds)
def test_every_pair_keeps_exactly_its_budget_and_the_same_again(case, retention, top_p, seed):
    scores, grid = case
    vectors = features_of(scores.size, seed=seed % 7)
    for policy in (*PAIRS, *COMPARED):
        asked = scores, retention, top_p, policy, grid, seed, vectors
        kept = select_in_stages(*asked)
        assert kept.indices.size == video_token_budget(scores.size, retention)
        assert kept.indices[0] >= 0
        assert kept.indices[-1] < scores.size
        assert (np.diff(kept.indices) > 0).all()
        assert_same(select_video_tokens(*asked), kept.indices)


@pytest.mark.parametrize("policy", [*PAIRS, *COMPARED])
def test_nothing_one_token_and_everything_are_defined(policy):
    assert_same(keep([], 0.1, policy, None, None), [])
    assert_same(keep([0.5], 0.01, policy, (1, 1, 1), [[1.0]]), [0])
    assert_same(keep([0.5], 0.01, policy, (1, 1, 1), [[0.0]]), [0])
    assert_same(keep(np.ones(12), 1.0, policy, (2, 2, 3), features_of(12)), np.arange(12))
    # One frame, and tokens that are all alike: ties go to the lower index, or are spaced evenly.
    flat = keep(np.ones(6), 0.5, policy, (1, 2, 3), np.ones((6, 4)))
    assert flat.size == 3
    assert flat[0] == (1 if policy == "change/two-stage-grid" else 0)


@steady
@given(case=scored_grids(), budget=st.integers(0, 12))
def test_spreading_is_walking_down_the_ranks_and_skipping_neighbours(case, budget):
    scores, grid = case
    budget = min(budget, scores.size)
    places = np.stack(np.unravel_index(np.arange(scores.size), grid), axis=1)
    left, order = list(np.argsort(-scores, kind="stable")), []
    for _ in range(spread.LAYERS):
        layer = []
        for token in left:
            if all(np.abs(places[taken] - places[token]).max() > 1 for taken in layer):
                layer.append(token)
        order += layer
        left = [token for token in left if token not in layer]
    # At most as many as a layer's sweeps: each of these is decided in time.
    assert budget <= spread.SWEEPS
    assert_same(spread.spread(scores, budget, grid), np.sort([*order, *left][:budget]))


def test_spreading_by_hand():
    scores = np.array([9, 8, 1, 7, 2, 6, 3], np.float32)
    # Layer one: 0, 3, 5. Layer two: 1, 6, 4. Layer three: 2.
    for budget, expected in ((1, [0]), (2, [0, 3]), (3, [0, 3, 5]), (4, [0, 1, 3, 5])):
        assert_same(spread.spread(scores, budget, (1, 1, 7)), expected)
        assert_same(spread.spread(scores, budget, (7, 1, 1)), expected)
    assert_same(spread.spread(scores, 5, (1, 1, 7)), [0, 1, 3, 5, 6])


def test_what_a_layer_leaves_open_goes_to_the_next_and_the_rest_follows_by_rank():
    # Along a ramp one more token is decided each sweep; those beside the first layer's stand alone
    # in the second, so that it gets as many again, and goes on below them.
    scores = np.arange(200, dtype=np.float32)
    sweeps = spread.SWEEPS
    first = [199 - 2 * step for step in range(sweeps)]
    second = [198 - 2 * step for step in range(2 * sweeps - 1)]
    for budget in (1, sweeps, sweeps + 1, 3 * sweeps - 1):
        kept = spread.spread(scores, budget, (1, 1, 200))
        assert_same(kept, sorted([*first, *second][:budget]))
    # All layers together end above token 60: below it rank alone decides.
    kept = spread.spread(scores, 190, (200, 1, 1))
    assert_same(kept, np.arange(10, 200))


@steady
@given(case=scored_grids(), retention=retentions, top_p=shares)
def test_top_p_comes_first_and_what_is_spread_leaves_it_out(case, retention, top_p):
    scores, grid = case
    vectors = features_of(scores.size)
    asked = scores, retention, top_p, "attention-change/top-p-spread", grid, 0, vectors
    budget = video_token_budget(scores.size, retention)
    found = select_in_stages(*asked)
    if not scores.any():
        assert found.fallbacks == 1
        return
    expected = retain_top_p(scores, top_p / 2, max(1, budget // 2))
    assert_same(found.stage_one, expected)
    # Walking down the ranks of the others, as if those taken were not there.
    worth = SCORERS["attention-change"].score(
        Question(scores, budget, top_p, grid, 0, vectors, scores)
    )
    places = np.stack(np.unravel_index(np.arange(scores.size), grid), axis=1)
    left = [t for t in np.argsort(-worth, kind="stable") if t not in set(expected)]
    layer = []
    for token in left:
        if all(np.abs(places[other] - places[token]).max() > 1 for other in layer):
            layer.append(token)
    first = layer[: min(spread.SWEEPS, budget - expected.size)]
    assert set(first) <= set(found.stage_two)


@steady
@given(case=scored_grids(), retention=retentions, seed=st.integers(0, 5))
def test_covering_is_the_greedy_choice_worked_out_plainly(case, retention, seed):
    scores, grid = case
    vectors = features_of(scores.size, seed)
    budget = video_token_budget(scores.size, retention)
    directions = features.quantised_directions(vectors)
    alike = np.maximum(features.similarity(directions, directions), 0)
    covered, kept = np.zeros(scores.size, np.int64), []
    for _ in range(budget):
        gain = np.maximum(alike - covered[:, None], 0).sum(axis=0) * scores.astype(np.float64)
        gain[kept] = -1
        kept.append(int(np.argmax(gain)))
        covered = np.maximum(covered, alike[:, kept[-1]])
    assert cover.chunk_sizes(grid) == [scores.size]
    assert_same(cover.cover(scores, vectors, budget, grid), np.sort(kept))


def test_a_long_video_is_covered_in_chunks_that_share_the_budget():
    # Frames of 900 tokens, two of them a chunk; a frame of 2,100 is a chunk alone.
    assert cover.chunk_sizes((5, 30, 30)) == [1800, 1800, 900]
    assert cover.chunk_sizes((2, 50, 42)) == [2100, 2100]
    assert cover.chunk_sizes((3, 4, 4)) == [48]
    vectors, scores = features_of(4500), np.random.default_rng(1).random(4500, np.float32)
    expected = [
        cover.cover(scores[part], vectors[part], count, (frames, 30, 30)) + part.start
        for part, count, frames in (
            (slice(0, 1800), 10, 2),
            (slice(1800, 3600), 10, 2),
            (slice(3600, 4500), 5, 1),
        )
    ]
    kept = cover.cover(scores, vectors, 25, (5, 30, 30))
    assert_same(kept, np.concatenate(expected))


@pytest.mark.parametrize(
    ("total", "sizes", "expected"),
    [
        (10, [4, 4, 4], [4, 3, 3]),
        (0, [3], [0]),
        (12, [4, 4, 4], [4, 4, 4]),
        (1, [1, 5], [0, 1]),
        (0, [], []),
        (0, [0, 0], [0, 0]),
    ],
)
def test_shares_go_to_the_largest_remainders(total, sizes, expected):
    assert cover.shares(total, sizes) == expected


@steady
@given(sizes=st.lists(st.integers(0, 50), max_size=6), share=st.floats(0, 1))
def test_shares_add_up_and_never_exceed_a_size(sizes, share):
    total = int(sum(sizes) * share)
    found = cover.shares(total, sizes)
    assert sum(found) == total
    assert all(0 <= part <= size for part, size in zip(found, sizes, strict=True))


@pytest.mark.parametrize("total", [-1, 6])
def test_a_total_outside_the_sizes_is_an_error(total):
    with pytest.raises(ValueError, match=rf"total must lie in \[0, 5\], got {total}"):
        cover.shares(total, [2, 3])


def test_change_is_the_cosine_distance_to_the_frame_before():
    vectors = np.array([[1, 0], [2, 0], [0, 3], [-1, 0], [0, 0], [1, 1]], np.float32)
    found = features.temporal_change(vectors, (3, 1, 2))
    # Frame 1: a right angle, then the opposite; frame 2: a zero vector, then 135 degrees.
    expected = [1, 2, 1, 2, 1, 1 + math.sqrt(0.5)]
    np.testing.assert_allclose(found, expected, atol=1 / features.STEPS)
    assert found.dtype == np.float32
    assert not features.temporal_change(vectors, (1, 2, 3)).any()
    assert not features.temporal_change(np.tile(vectors[:3], (2, 1)), (2, 1, 3)).any()


def test_a_still_video_ranks_by_attention_alone_and_has_no_change():
    scores = np.random.default_rng(2).random(60)
    still = np.tile(features_of(15), (4, 1))
    for selector in SELECTORS:
        if selector in ("cover", "top-p-spread"):
            continue
        with_change = keep(scores, 0.2, f"attention-change/{selector}", (4, 3, 5), still)
        # The root keeps the order, and two-stage reads the masses, not only the order.
        expected = keep(np.sqrt(scores), 0.2, f"attention/{selector}", (4, 3, 5), still)
        assert_same(with_change, expected)
    fallen = select_in_stages(scores, 0.2, 0.4, "change", (4, 3, 5), 0, still)
    assert fallen.fallbacks == 1
    assert_same(fallen.indices, keep(scores, 0.2, "uniform", None, None))


def test_evs_takes_the_first_frame_whole_before_any_change():
    vectors = features_of(60)
    assert_same(keep(np.zeros(60), 0.1, "evs", (4, 3, 5), vectors), np.arange(6))
    kept = keep(np.zeros(60), 0.5, "evs", (4, 3, 5), vectors)
    assert_same(kept[:15], np.arange(15))
    change = features.temporal_change(vectors, (4, 3, 5))
    assert_same(kept[15:], np.sort(np.argsort(-change[15:], kind="stable")[:15]) + 15)


def test_max_min_takes_what_is_least_like_the_rest():
    vectors = np.array([[1, 0], [1, 0.01], [0, 1], [-1, 0], [0.01, 1]], np.float32)
    # Token 3 has no neighbour; then 0 (ties with 1 by distance within a step), then 2 or 4.
    assert_same(cover.max_min(vectors, 1), [3])
    assert set(cover.max_min(vectors, 3)) in ({0, 2, 3}, {0, 3, 4}, {1, 2, 3}, {1, 3, 4})
    everything = cover.max_min(np.ones((5, 3), np.float32), 3)
    assert_same(everything, [0, 1, 2])


@steady
@given(case=scored_grids(), retention=retentions)
def test_max_min_is_the_published_loop(case, retention):
    vectors = features_of(case[0].size)
    budget = video_token_budget(case[0].size, retention)
    directions = features.quantised_directions(vectors)
    alike = features.similarity(directions, directions)
    others = alike.astype(np.int64)
    np.fill_diagonal(others, -(2**40))
    kept = [int(np.argmin(others.max(axis=1)))]
    while len(kept) < budget:
        nearest = alike[:, kept].max(axis=1).astype(np.int64)
        nearest[kept] = np.iinfo(np.int64).max
        kept.append(int(np.argmin(nearest)))
    assert_same(cover.max_min(vectors, budget), np.sort(kept))


def test_vidcom2_gives_an_unlike_frame_more_tokens_and_keeps_the_unlike_ones():
    rng = np.random.default_rng(3)
    base = rng.normal(size=8)
    vectors = (base + 0.05 * rng.normal(size=(4, 10, 8))).astype(np.float32)
    vectors[2] += 2 * rng.normal(size=8)
    # Half of the channels vary most, and do not count.
    vectors = np.concatenate([vectors, 90 * rng.normal(size=(4, 10, 8)).astype(np.float32)], -1)
    kept = keep(np.zeros(40), 0.3, "vidcom2", (4, 2, 5), vectors.reshape(40, 16))
    counts = np.bincount(kept // 10, minlength=4)
    assert counts.sum() == 12
    # (1 + p - mean p) * 12 / 4 where p is nearly 1 for the frame that is unlike the others.
    assert counts.tolist() == [2, 2, 6, 2] or counts.tolist() == [3, 2, 5, 2]
    unit = vectors[..., :8] / np.linalg.norm(vectors[..., :8], axis=-1, keepdims=True)
    typical = np.zeros((4, 10))
    for center in (unit.mean((0, 1), keepdims=True), unit.mean(1, keepdims=True)):
        for width in (1 / 8, 1 / 4, 1 / 2, 1, 2):
            typical += np.exp(-((unit - center) ** 2).sum(-1) / (2 * width))
    for frame, count in enumerate(counts):
        expected = np.argsort(typical[frame], kind="stable")[:count]
        assert_same(kept[kept // 10 == frame] % 10, np.sort(expected))


def test_v_cast_gives_a_turning_frame_more_tokens():
    rng = np.random.default_rng(5)
    path = np.array([[1, 0, 0], [1, 0.3, 0], [1, 0.6, 0], [1, 0.3, 0.1], [1, 0, 0.1]])
    vectors = (path[:, None] + 0.01 * rng.normal(size=(5, 20, 3))).reshape(100, 3)
    kept = keep(np.zeros(100), 0.3, "v-cast", (5, 4, 5), vectors)
    counts = np.bincount(kept // 20, minlength=5)
    assert counts.sum() == 30
    # The path goes on at frames 1 and 3 and turns back at frame 2.
    assert counts[2] > max(counts[1], counts[3])


def test_quantised_products_do_not_depend_on_the_order_of_a_sum():
    vectors = np.random.default_rng(1).normal(size=(40, 3584)).astype(np.float32)
    directions = features.quantised_directions(vectors)
    exact = directions.astype(np.float64) @ directions.astype(np.float64).T
    np.testing.assert_array_equal(directions @ directions.T, exact)
    shuffled = np.random.default_rng(2).permutation(3584)
    np.testing.assert_array_equal(
        features.similarity(directions[:, shuffled], directions[:, shuffled]),
        features.similarity(directions, directions),
    )


@pytest.mark.parametrize("policy", ["scope", "floc", "change", "evs", "attention-change-spread"])
def test_missing_or_unfit_features_are_an_error(policy):
    scores, grid = np.ones(6), (1, 2, 3)
    with pytest.raises(ValueError, match=f"features must be an array for policy '{policy}'"):
        select_video_tokens(scores, 0.5, policy=policy, grid=grid)
    for bad in (np.ones((5, 2)), np.ones(6), np.ones((6, 0))):
        with pytest.raises(ValueError, match=r"features must have shape \(6, d\)"):
            keep(scores, 0.5, policy, grid, bad)
    with pytest.raises(ValueError, match="features must be finite, got nan"):
        keep(scores, 0.5, policy, grid, np.full((6, 2), np.nan))


@pytest.mark.parametrize("name", ["attention/best", "best/top-k", "attention/", "/top-k", "a/b/c"])
def test_an_unknown_part_is_an_error_that_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=r"SCORER/SELECTOR of attention, .* and two-stage, "):
        select_video_tokens([1.0], 0.5, policy=name)


@pytest.mark.parametrize(
    ("n", "retention", "at_most", "kept"),
    [(100, 0.1, 5, 5), (100, 0.1, 50, 10), (100, 1.0, 7, 7), (3, 0.1, 7, 1), (0, 1.0, 1, 0)],
)
def test_a_limit_in_tokens_is_never_exceeded(n, retention, at_most, kept):
    assert video_token_budget(n, retention, at_most) == kept
    found = select_in_stages(np.ones(n), retention, at_most=at_most)
    assert found.indices.size == kept


@pytest.mark.parametrize(
    ("lengths", "at_most", "budgets"),
    [
        ([100, 50], 6, [4, 2]),
        ([100, 50], 7, [5, 2]),
        ([100, 50], 1, [1, 0]),
        ([100, 50], 99, [10, 5]),
        ([], 5, []),
        ([0, 20], 1, [0, 1]),
    ],
)
def test_videos_share_a_limit_in_proportion_to_their_budgets(lengths, at_most, budgets):
    assert video_token_budgets(lengths, 0.1, at_most) == budgets
    kept = select_per_video(np.ones(sum(lengths)), lengths, 0.1, at_most=at_most).indices
    edges = np.cumsum([0, *lengths])
    inside = [int(((kept >= a) & (kept < b)).sum()) for a, b in itertools.pairwise(edges)]
    assert inside == budgets


@pytest.mark.parametrize("at_most", [0, -3])
def test_a_limit_below_one_token_is_an_error(at_most):
    with pytest.raises(ValueError, match=f"at_most must be at least 1, got {at_most}"):
        video_token_budget(10, 0.5, at_most)
    with pytest.raises(ValueError, match=f"at_most must be at least 1, got {at_most}"):
        select_per_video(np.ones(4), [4], 0.5, at_most=at_most)


def test_the_named_policies_are_the_ones_that_ship():
    assert POLICIES[0] == "specvlm"
    assert set(COMPARED).isdisjoint(POLICIES)
