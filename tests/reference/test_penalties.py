"""Penalties of plain decoding, and at the nodes of a draft tree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.decoding import DraftTree, decode_plainly, draft_tree, speculative_decode
from reference.penalties import Penalties, penalise, penalise_nodes, penalised_target

VOCABULARY = 6
Tokens = tuple[int, ...]


def test_each_penalty_looks_at_the_output_alone() -> None:
    logits = np.array([2.0, 1.0, -1.0, 0.5, 0.0, 3.0])
    output = [0, 2, 2]
    assert penalise(logits, output, Penalties(frequency=0.5)).tolist() == [
        1.5, 1.0, -2.0, 0.5, 0.0, 3.0,
    ]  # fmt: skip
    assert penalise(logits, output, Penalties(presence=0.5)).tolist() == [
        1.5, 1.0, -1.5, 0.5, 0.0, 3.0,
    ]  # fmt: skip
    assert penalise(logits, output, Penalties(repetition=2.0)).tolist() == [
        1.0, 1.0, -2.0, 0.5, 0.0, 3.0,
    ]  # fmt: skip


def test_what_is_subtracted_comes_before_what_scales() -> None:
    # 1 - 2 = -1 is negative, so the scale multiplies.
    both = Penalties(presence=2.0, repetition=1.5)
    assert penalise([1.0, 0.0], [0], both).tolist() == [-1.5, 0.0]


def test_no_stop_token_comes_before_the_minimum() -> None:
    minimum = Penalties(min_new_tokens=2, stop_tokens=(1, 3))
    assert penalise(np.zeros(4), [0], minimum).tolist() == [0, -np.inf, 0, -np.inf]
    assert penalise(np.zeros(4), [0, 0], minimum).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"frequency": 2.5}, "frequency = 2.5"),
        ({"presence": -3}, "presence = -3"),
        ({"repetition": 0}, "repetition = 0"),
        ({"min_new_tokens": -1}, "min_new_tokens = -1"),
    ],
)
def test_values_out_of_range_are_named(values: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Penalties(**values)  # type: ignore[arg-type]


def test_shapes_and_tokens_are_checked() -> None:
    tree = DraftTree((1, 2), np.array([2]), np.array([-1]))
    with pytest.raises(ValueError, match="logits"):
        penalise(np.zeros((2, 2)), [], Penalties())
    with pytest.raises(ValueError, match="token = 9"):
        penalise(np.zeros(4), [9], Penalties())
    with pytest.raises(ValueError, match="logits"):
        penalise_nodes(tree, np.zeros((3, 4)), 1, Penalties())
    with pytest.raises(ValueError, match="prompt_length = 2"):
        penalise_nodes(tree, np.zeros((1, 4)), 2, Penalties())
    with pytest.raises(ValueError, match="prompt_length = 3"):
        penalised_target(lambda prefix: np.zeros(4), 3, Penalties())((1, 2))


def test_a_node_is_judged_by_its_own_path() -> None:
    # 0 -> {1, 2}, 1 -> {1}: the second 1 is judged by two of them, its sibling 2 by none.
    tree = DraftTree((5, 0), np.array([0, 1, 2, 1]), np.array([-1, 0, 0, 1]))
    judged = penalise_nodes(tree, np.zeros((4, 6)), 1, Penalties(frequency=1.0))
    assert judged[:, 1].tolist() == [0, -1, 0, -2]
    assert judged[:, 2].tolist() == [0, 0, -1, 0]
    assert judged[:, 0].tolist() == [-1] * 4, "the root was emitted, too"
    assert judged[:, 5].tolist() == [0] * 4, "the prompt does not count"


class Logits:
    """Logits that depend on the last token, with ties broken by their index."""

    def __init__(self, seed: int) -> None:
        self._rows = np.random.default_rng(seed).normal(size=(VOCABULARY, VOCABULARY)) * 2

    def __call__(self, prefix: Tokens) -> np.ndarray:
        return self._rows[prefix[-1]]


penalties = st.builds(
    Penalties,
    frequency=st.sampled_from([-1.0, 0.0, 0.4, 1.5]),
    presence=st.sampled_from([-0.5, 0.0, 1.0]),
    repetition=st.sampled_from([0.8, 1.0, 1.3]),
    min_new_tokens=st.integers(0, 8),
    stop_tokens=st.sampled_from([(4,), (4, 5)]),
)


@settings(deadline=None, max_examples=60)
@given(penalties, st.integers(0, 5), st.integers(1, 3), st.integers(1, 3))
def test_speculation_with_penalties_emits_what_plain_decoding_does(
    chosen: Penalties, seed: int, topk: int, steps: int
) -> None:
    prompt = (3, 1)
    target = penalised_target(Logits(seed), len(prompt), chosen)
    # A draft that knows of no penalty.
    draft = penalised_target(Logits(seed), len(prompt), Penalties())
    plain = decode_plainly(prompt, target, max_new_tokens=12, eos_token=4)
    speculated = speculative_decode(
        prompt,
        target,
        lambda prefix: draft_tree(prefix, draft, [topk] * steps),
        max_new_tokens=12,
        eos_token=4,
    )
    assert speculated.tokens == plain


@settings(deadline=None, max_examples=40)
@given(penalties, st.integers(0, 5))
def test_the_logits_of_a_node_are_those_of_plain_decoding_there(
    chosen: Penalties, seed: int
) -> None:
    logits = Logits(seed)
    tree = DraftTree((2, 0, 3), np.array([3, 1, 0, 1, 3]), np.array([-1, 0, 0, 1, 2]))
    raw = np.stack([logits(tree.path(node)) for node in range(5)])
    judged = penalise_nodes(tree, raw, 1, chosen)
    target = penalised_target(logits, 1, chosen)
    for node, row in enumerate(judged):
        weights = np.exp(row - row.max())
        np.testing.assert_allclose(weights / weights.sum(), target(tree.path(node)), atol=1e-12)
