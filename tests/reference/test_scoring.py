"""Language-to-video scores: by hand, against a plain loop, streamed against direct, and errors."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.scoring import (
    language_query_rows,
    language_to_video_scores,
    language_to_video_scores_streamed,
)

# Both versions compute in float64 and round once to float32.
STREAMED = {"rtol": 3e-7, "atol": 1e-30}
SCORERS = pytest.mark.parametrize(
    "scorer", [language_to_video_scores, language_to_video_scores_streamed]
)


def prompt(
    seed: int = 0,
    *,
    layers: int = 2,
    before: int = 3,
    video: int = 11,
    after: int = 4,
    kv_heads: int = 2,
    group: int = 3,
    head_dim: int = 4,
    spread: float = 1.0,
) -> dict[str, Any]:
    """Scoring arguments of a random prompt: text, one video, and the text after it."""
    rng = np.random.default_rng(seed)
    length = before + video + after
    return {
        "queries": spread * rng.standard_normal((layers, after, kv_heads * group, head_dim)),
        "keys": rng.standard_normal((layers, length, kv_heads, head_dim)),
        "query_positions": np.arange(before + video, length),
        "video_positions": np.arange(before, before + video),
        "scale": head_dim**-0.5,
    }


def plain_loop(arguments: dict[str, Any]) -> np.ndarray:
    """The definition, one softmax at a time in Python floats."""
    queries = np.asarray(arguments["queries"], dtype=np.float32)
    keys = np.asarray(arguments["keys"], dtype=np.float32)
    layers, rows, heads, _ = queries.shape
    group = heads // keys.shape[2]
    cap = arguments.get("logit_cap")
    totals = [0.0] * len(arguments["video_positions"])
    for layer in range(layers):
        for row in range(rows):
            for head in range(heads):
                logits = []
                for key in range(int(arguments["query_positions"][row]) + 1):
                    pairs = zip(
                        queries[layer, row, head].tolist(),
                        keys[layer, key, head // group].tolist(),
                        strict=True,
                    )
                    logit = arguments["scale"] * math.fsum(q * k for q, k in pairs)
                    logits.append(logit if cap is None else cap * math.tanh(logit / cap))
                top = max(logits)
                mass = math.fsum(math.exp(logit - top) for logit in logits)
                for index, position in enumerate(arguments["video_positions"]):
                    if position < len(logits):
                        totals[index] += math.exp(logits[position] - top) / mass
    return np.array(totals) / (layers * rows * heads)


@SCORERS
def test_equal_logits_share_the_mass_over_every_visible_key(scorer):
    scores = scorer(
        np.zeros((1, 2, 1, 4)),
        np.ones((1, 6, 1, 4)),
        query_positions=[3, 5],
        video_positions=[1, 2, 4],
        scale=1.0,
    )
    # Row 3 sees four keys, row 5 sees six; position 4 is hidden from row 3.
    both = (1 / 4 + 1 / 6) / 2
    np.testing.assert_allclose(scores, [both, both, 1 / 6 / 2], rtol=1e-6)
    assert scores.dtype == np.float32


@SCORERS
def test_a_softmax_worked_out_by_hand(scorer):
    # Logits 0, ln 2, ln 5 and, for the row's own key, 0: probabilities 1/9, 2/9, 5/9, 1/9.
    keys = np.array([0.0, math.log(2), math.log(5), 0.0]).reshape(1, 4, 1, 1)
    scores = scorer(
        np.full((1, 1, 1, 1), 2.0), keys, query_positions=[3], video_positions=[1, 2], scale=0.5
    )
    np.testing.assert_allclose(scores, [2 / 9, 5 / 9], rtol=1e-6)


@SCORERS
def test_consecutive_query_heads_share_a_kv_head(scorer):
    # Four query heads over two KV heads. Only heads 2 and 3 look, through KV head 1, at key 1.
    queries = np.zeros((1, 1, 4, 1))
    queries[0, 0, 2:] = 1.0
    keys = np.zeros((1, 3, 2, 1))
    keys[0, 1, 1] = math.log(2)
    scores = scorer(queries, keys, query_positions=[2], video_positions=[0, 1], scale=1.0)
    np.testing.assert_allclose(scores, [(1 / 3 + 1 / 4) / 2, (1 / 3 + 1 / 2) / 2], rtol=1e-6)


@SCORERS
def test_the_logit_cap_acts_on_scaled_logits(scorer):
    keys = np.array([0.0, 8.0]).reshape(1, 2, 1, 1)
    scores = scorer(
        np.ones((1, 1, 1, 1)),
        keys,
        query_positions=[1],
        video_positions=[0, 1],
        scale=0.5,
        logit_cap=3.0,
    )
    capped = math.exp(3 * math.tanh(8 * 0.5 / 3))
    np.testing.assert_allclose(scores, [1 / (1 + capped), capped / (1 + capped)], rtol=1e-6)


@SCORERS
@pytest.mark.parametrize("logit_cap", [None, 0.7])
@pytest.mark.parametrize(("kv_heads", "group"), [(1, 1), (1, 4), (3, 1), (2, 3)])
def test_scores_equal_a_plain_loop_over_the_definition(scorer, kv_heads, group, logit_cap):
    arguments = prompt(7, kv_heads=kv_heads, group=group) | {"logit_cap": logit_cap}
    np.testing.assert_allclose(scorer(**arguments), plain_loop(arguments), rtol=1e-6)


@SCORERS
def test_rows_may_stand_between_the_videos(scorer):
    arguments = prompt(3) | {
        "query_positions": np.array([17, 2, 8, 5]),
        "video_positions": np.array([9, 1, 4, 16]),
    }
    np.testing.assert_allclose(scorer(**arguments), plain_loop(arguments), rtol=1e-6)


@given(
    seed=st.integers(0, 2**32 - 1),
    layers=st.integers(1, 3),
    before=st.integers(0, 5),
    video=st.integers(0, 40),
    after=st.integers(0, 5),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    head_dim=st.integers(1, 8),
    logit_cap=st.none() | st.floats(0.1, 50.0),
    spread=st.sampled_from([0.0, 1.0, 30.0]),
    key_block=st.integers(1, 64),
)
@settings(max_examples=60, deadline=None)
def test_streaming_equals_the_direct_map(
    seed, layers, before, video, after, kv_heads, group, head_dim, logit_cap, spread, key_block
):
    arguments = prompt(
        seed,
        layers=layers,
        before=before,
        video=video,
        after=after,
        kv_heads=kv_heads,
        group=group,
        head_dim=head_dim,
        spread=spread,
    ) | {"logit_cap": logit_cap}
    direct = language_to_video_scores(**arguments)
    streamed = language_to_video_scores_streamed(**arguments, key_block=key_block)
    assert direct.shape == streamed.shape == (video,)
    assert direct.dtype == streamed.dtype == np.float32
    np.testing.assert_allclose(streamed, direct, **STREAMED)


@pytest.mark.parametrize("key_block", [1, 2, 5, 17, 18, 19, 1000])
def test_streaming_takes_blocks_that_do_not_divide_the_prompt(key_block):
    arguments = prompt(11)
    np.testing.assert_allclose(
        language_to_video_scores_streamed(**arguments, key_block=key_block),
        language_to_video_scores(**arguments),
        **STREAMED,
    )


@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.0, 1.0, 100.0]))
@settings(max_examples=25, deadline=None)
def test_all_positions_together_hold_the_whole_mass(seed, spread):
    arguments = prompt(seed, spread=spread)
    arguments["video_positions"] = np.arange(arguments["keys"].shape[1])
    scores = language_to_video_scores(**arguments)
    assert (scores >= 0).all()
    assert math.isclose(scores.sum(dtype=np.float64), 1.0, rel_tol=1e-5)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_scores_follow_the_order_of_the_video_positions(seed):
    arguments = prompt(seed)
    order = np.random.default_rng(seed).permutation(arguments["video_positions"].size)
    shuffled = arguments | {"video_positions": arguments["video_positions"][order]}
    for scorer in (language_to_video_scores, language_to_video_scores_streamed):
        np.testing.assert_allclose(scorer(**shuffled), scorer(**arguments)[order], **STREAMED)


@SCORERS
def test_keys_after_the_last_row_change_nothing(scorer):
    arguments = prompt(5)
    extra = 100 * np.ones((2, 3, 2, 4))
    longer = arguments | {"keys": np.concatenate([arguments["keys"], extra], axis=1)}
    np.testing.assert_array_equal(scorer(**longer), scorer(**arguments))


@SCORERS
def test_huge_logits_neither_overflow_nor_lose_the_winner(scorer):
    keys = np.array([0.0, 1e4, 0.0]).reshape(1, 3, 1, 1)
    scores = scorer(
        np.full((1, 1, 1, 1), 1e4), keys, query_positions=[2], video_positions=[0, 1], scale=1.0
    )
    np.testing.assert_array_equal(scores, [0.0, 1.0])


@SCORERS
def test_scores_keep_differences_that_half_precision_loses(scorer):
    n = 20_000
    keys = np.zeros((1, n + 1, 1, 1))
    keys[0, :n, 0, 0] = np.linspace(0.0, 0.01, n)
    scores = scorer(
        np.ones((1, 1, 1, 1)), keys, query_positions=[n], video_positions=np.arange(n), scale=1.0
    )
    assert (np.diff(scores) > 0).all()
    assert np.unique(scores.astype(np.float16)).size < 20


@SCORERS
def test_no_video_tokens_give_no_scores(scorer):
    scores = scorer(**(prompt() | {"video_positions": []}))
    assert scores.shape == (0,)
    assert scores.dtype == np.float32


@SCORERS
def test_a_prompt_that_ends_with_its_video_scores_zero(scorer):
    np.testing.assert_array_equal(scorer(**prompt(after=0, video=5)), np.zeros(5, np.float32))


def test_query_rows_are_the_text_after_the_last_video_token():
    np.testing.assert_array_equal(language_query_rows(10, [2, 3, 6]), [7, 8, 9])


def test_query_rows_keep_the_newest_rows_of_a_long_tail():
    np.testing.assert_array_equal(language_query_rows(10, [0], max_query_rows=3), [7, 8, 9])
    assert language_query_rows(1000, [0]).size == 256


@pytest.mark.parametrize("video", [[], [4]], ids=["no video", "video last"])
def test_there_may_be_no_query_rows(video):
    rows = language_query_rows(5, video)
    assert rows.shape == (0,)
    assert rows.dtype == np.int64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, []), r"prompt_length must be at least 0, got -1"),
        ((5, [0], 0), r"max_query_rows must be at least 1, got 0"),
        ((5, [5]), r"video_positions must be at least 0 and below 5, got 5"),
    ],
)
def test_query_rows_reject_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        language_query_rows(*arguments)


def with_entry(value: float, shape: tuple[int, ...]) -> np.ndarray:
    array = np.zeros(shape)
    array[(0, 1, *[0] * (len(shape) - 2))] = value
    return array


@SCORERS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": np.zeros((4, 6, 4))}, r"queries must have four axes.*\(4, 6, 4\)"),
        ({"keys": np.zeros((18, 2))}, r"keys must have four axes.*\(18, 2\)"),
        ({"keys": np.zeros((3, 18, 2, 4))}, r"same number of layers, at least 1, got 2 and 3"),
        (
            {"queries": np.zeros((0, 4, 6, 4)), "keys": np.zeros((0, 18, 2, 4))},
            r"same number of layers, at least 1, got 0 and 0",
        ),
        ({"keys": np.zeros((2, 18, 2, 5))}, r"same head_dim, at least 1, got 4 and 5"),
        (
            {"queries": np.zeros((2, 4, 6, 0)), "keys": np.zeros((2, 18, 2, 0))},
            r"same head_dim, at least 1, got 0 and 0",
        ),
        ({"keys": np.zeros((2, 18, 4, 4))}, r"6 query heads over 4 KV heads"),
        ({"keys": np.zeros((2, 18, 0, 4))}, r"6 query heads over 0 KV heads"),
        ({"queries": np.zeros((2, 4, 0, 4))}, r"0 query heads over 2 KV heads"),
        ({"queries": with_entry(np.nan, (2, 4, 6, 4))}, r"queries must be finite.*nan"),
        ({"keys": with_entry(-np.inf, (2, 18, 2, 4))}, r"keys must be finite.*-inf"),
        ({"keys": with_entry(1e39, (2, 18, 2, 4))}, r"keys must be finite in float32, got inf"),
        ({"query_positions": [14, 15, 16, 18]}, r"query_positions must .* below 18, got 18"),
        ({"query_positions": [-1, 15, 16, 17]}, r"query_positions must be at least 0.*got -1"),
        ({"query_positions": [15, 16, 17]}, r"query_positions must .* 4 rows of queries, got 3"),
        ({"query_positions": [[14, 15, 16, 17]]}, r"query_positions must be a 1-D integer array"),
        ({"video_positions": [3, 18]}, r"video_positions must .* below 18, got 18"),
        ({"video_positions": [-2]}, r"video_positions must be at least 0.*got -2"),
        ({"video_positions": [1.5]}, r"video_positions must be a 1-D integer array, got float64"),
        ({"scale": 0.0}, r"scale must be positive and finite, got 0.0"),
        ({"scale": math.inf}, r"scale must be positive and finite, got inf"),
        ({"scale": math.nan}, r"scale must be positive and finite, got nan"),
        ({"logit_cap": 0.0}, r"logit_cap must be positive and finite, got 0.0"),
        ({"logit_cap": -30.0}, r"logit_cap must be positive and finite, got -30.0"),
    ],
)
def test_scoring_names_the_argument_that_does_not_fit(scorer, change, message):
    with pytest.raises(ValueError, match=message):
        scorer(**(prompt() | change))


def test_streaming_rejects_an_empty_block():
    with pytest.raises(ValueError, match="key_block must be at least 1, got 0"):
        language_to_video_scores_streamed(**prompt(), key_block=0)
