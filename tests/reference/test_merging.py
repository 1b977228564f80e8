"""Dropped tokens mixed into the kept ones they resemble."""

import numpy as np
from hypothesis import given

from reference.features import quantised_directions, similarity
from reference.merging import OWN, merge, nearest_kept
from tests.support.selection_cases import features_of, scored_grids, steady


def test_a_kept_token_takes_the_mean_of_those_most_like_it():
    vectors = np.array([[2, 0], [1, 0.1], [0, 1], [0.1, 3], [4, 0], [-1, 0]], np.float32)
    merged = merge(vectors, np.array([0, 2]))
    # 1 and 4 are most like 0; 3 and the opposite 5 are most like 2.
    expected = [
        OWN * vectors[0] + (1 - OWN) * (vectors[1] + vectors[4]) / 2,
        OWN * vectors[2] + (1 - OWN) * (vectors[3] + vectors[5]) / 2,
    ]
    np.testing.assert_allclose(merged, expected, rtol=1e-6)
    assert merged.dtype == np.float32


def test_a_kept_token_that_is_nobodys_nearest_stays_as_it_is():
    vectors = np.array([[1, 0], [0, 1], [0, 2]], np.float32)
    np.testing.assert_array_equal(merge(vectors, np.array([0, 1]))[0], vectors[0])
    np.testing.assert_array_equal(merge(vectors, np.arange(3)), vectors)
    assert merge(vectors, np.arange(0)).shape == (0, 2)


def test_ties_go_to_the_lower_index():
    vectors = np.ones((5, 3), np.float32)
    assert nearest_kept(vectors, np.array([1, 3])).tolist() == [0] * 5


@steady
@given(case=scored_grids())
def test_merging_is_the_plain_loop(case):
    scores, _ = case
    vectors = features_of(scores.size)
    kept = np.flatnonzero(scores >= np.median(scores))
    directions = quantised_directions(vectors)
    alike = similarity(directions, directions)
    groups = {int(token): [] for token in kept}
    for token in set(range(scores.size)) - set(groups):
        groups[int(kept[np.argmax(alike[token, kept])])].append(vectors[token].astype(float))
    expected = [
        OWN * vectors[token] + (1 - OWN) * np.mean(group, axis=0) if group else vectors[token]
        for token, group in groups.items()
    ]
    np.testing.assert_allclose(merge(vectors, kept), expected, rtol=1e-6, atol=1e-6)
