"""Draft trees and drafting: by hand, by definition, and against SGLang's own selection."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.speculative.eagle_utils import organize_draft_results
from sglang.srt.speculative.spec_utils import select_top_k_tokens

from reference.decoding import (
    DraftTree,
    draft_chain,
    draft_dynamic_tree,
    draft_tree,
    parents_from_selection,
    retrieval_arrays,
    tree_attention_mask,
    tree_depths,
)

Tokens = tuple[int, ...]
#          0
#        / | \
#       1  2  5
#      /|  |
#     3 6  4
PARENTS = [-1, 0, 0, 1, 2, 0, 1]


def fixed(*row: float) -> Callable[[Tokens], np.ndarray]:
    return lambda prefix: np.array(row)


def random_model(seed: int, vocab: int) -> Callable[[Tokens], np.ndarray]:
    def probabilities(prefix: Tokens) -> np.ndarray:
        logits = np.random.default_rng([seed, *prefix]).normal(size=vocab) * 2
        weights = np.exp(logits)
        return weights / weights.sum()

    return probabilities


parent_lists = st.integers(0, 12).flatmap(
    lambda n: st.tuples(*(st.integers(0, i) for i in range(n))).map(lambda p: [-1, *p])
)


def test_a_node_attends_to_itself_and_its_ancestors() -> None:
    mask = tree_attention_mask(PARENTS)
    visible = [np.flatnonzero(row).tolist() for row in mask]
    assert visible == [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4], [0, 5], [0, 1, 6]]
    assert mask.dtype == np.bool_


def test_a_chain_attends_causally() -> None:
    np.testing.assert_array_equal(
        tree_attention_mask([-1, 0, 1, 2]), np.tril(np.ones((4, 4), bool))
    )


def test_depths_count_edges_to_the_root() -> None:
    assert tree_depths(PARENTS).tolist() == [0, 1, 1, 2, 2, 1, 2]


def test_links_go_to_the_first_child_and_the_next_sibling() -> None:
    links = retrieval_arrays(PARENTS)
    assert links.retrieve_index.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert links.retrieve_next_token.tolist() == [1, 3, 4, -1, -1, -1, -1]
    assert links.retrieve_next_sibling.tolist() == [-1, 2, 5, 6, -1, -1, -1]


@given(parent_lists)
def test_links_reach_every_child_in_index_order(parents: list[int]) -> None:
    links = retrieval_arrays(parents)
    for node in range(len(parents)):
        walked, child = [], int(links.retrieve_next_token[node])
        while child != -1:
            walked.append(child)
            child = int(links.retrieve_next_sibling[child])
        assert walked == [i for i, parent in enumerate(parents) if parent == node]


@given(parent_lists)
def test_masks_and_depths_agree_with_walking_up(parents: list[int]) -> None:
    mask, depths = tree_attention_mask(parents), tree_depths(parents)
    for node in range(len(parents)):
        ancestors, at = [], node
        while at != -1:
            ancestors.append(at)
            at = parents[at]
        assert np.flatnonzero(mask[node]).tolist() == sorted(ancestors)
        assert depths[node] == len(ancestors) - 1


def test_a_path_ends_in_its_node() -> None:
    tree = DraftTree((8, 9), np.array([9, 1, 2, 3]), np.array([-1, 0, 0, 2]))
    assert tree.path(0) == (8, 9)
    assert tree.path(1) == (8, 9, 1)
    assert tree.path(3) == (8, 9, 2, 3)
    assert tree.children(0) == [1, 2]
    assert not tree.is_chain()


def test_an_argmax_chain_is_its_own_proposal() -> None:
    chain = draft_chain([4], lambda p: np.roll([0.6, 0.3, 0.1], len(p)), 3)
    assert chain.tokens.tolist() == [4, 1, 2, 0]
    assert chain.parents.tolist() == [-1, 0, 1, 2]
    assert chain.proposals is not None
    np.testing.assert_array_equal(chain.proposals, np.eye(3)[[1, 2, 0]])
    assert chain.is_chain()


@pytest.mark.parametrize(("coin", "token"), [(0.0, 0), (0.24, 0), (0.25, 2), (0.99, 2)])
def test_a_sampled_chain_inverts_the_draft_distribution(coin: float, token: int) -> None:
    chain = draft_chain((1,), fixed(0.25, 0.0, 0.75), 1, coins=[coin])
    assert chain.tokens.tolist() == [1, token]
    assert chain.proposals is not None
    np.testing.assert_array_equal(chain.proposals, [[0.25, 0.0, 0.75]])


def test_a_static_tree_keeps_the_best_continuations_of_each_depth() -> None:
    # Depth 1: 0 (0.5), 2 (0.3). Depth 2: 0-0 (0.25), then 0-2 and 2-0 tie at 0.15.
    tree = draft_tree([7], fixed(0.5, 0.2, 0.3), [2, 3])
    assert tree.tokens.tolist() == [7, 0, 2, 0, 2, 0]
    assert tree.parents.tolist() == [-1, 0, 0, 1, 1, 2]
    assert tree.proposals is None


def test_the_static_tree_of_the_paper_has_26_nodes_at_depth_5() -> None:
    tree = draft_tree((3,), random_model(1, 12), [4, 8, 8, 3, 2])
    assert len(tree.tokens) == 26
    assert np.bincount(tree_depths(tree.parents)).tolist() == [1, 4, 8, 8, 3, 2]


def test_a_dynamic_tree_of_one_beam_is_the_argmax_chain() -> None:
    model = random_model(5, 9)
    tree = draft_dynamic_tree((2,), model, topk=1, num_steps=4, num_draft_tokens=5)
    np.testing.assert_array_equal(tree.tokens, draft_chain((2,), model, 4).tokens)
    assert tree.is_chain()


def test_a_dynamic_tree_prefers_likely_depth_to_unlikely_breadth() -> None:
    tree = draft_dynamic_tree((7,), fixed(0.9, 0.1), topk=2, num_steps=3, num_draft_tokens=5)
    # Kept: 0 (0.9), 0-0 (0.81), 0-0-0 (0.729), 1 (0.1, proposed before the 0.09 of 0-1).
    assert tree.tokens.tolist() == [7, 0, 1, 0, 0]
    assert tree.parents.tolist() == [-1, 0, 0, 1, 3]


def test_certain_drafts_keep_every_parent() -> None:
    tree = draft_dynamic_tree((7,), fixed(1.0, 0.0), topk=2, num_steps=4, num_draft_tokens=15)
    assert len(tree.tokens) == 15
    assert tree.tokens.tolist()[:2] == [7, 0]


def by_sglang(
    prefix: Tokens, model: Callable[[Tokens], np.ndarray], topk: int, steps: int, nodes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """SGLang's draft loop with ``model`` in place of the draft's forward pass."""
    rows = torch.tensor(model(prefix))[None]
    topk_p, topk_index = torch.topk(rows, topk, dim=-1)
    scores, beams = None, [prefix]
    results: tuple[list, list, list] = ([], [], [])
    with torch.compiler.set_stance("force_eager"):
        for step in range(steps):
            # The index of each row rides along as its hidden state and says which beam it extends.
            owners = torch.arange(len(beams), dtype=torch.float64)[:, None]
            ids, owners, scores, info = select_top_k_tokens(
                step, topk_p, topk_index, owners, scores, topk
            )
            for collected, item in zip(results, info, strict=True):
                collected.append(item)
            beams = [
                (*beams[int(owner)], int(token)) for owner, token in zip(owners, ids, strict=True)
            ]
            rows = torch.stack([torch.tensor(model(beam)) for beam in beams])
            topk_p, topk_index = torch.topk(rows, topk, dim=-1)
    parent_list, selected, tokens = organize_draft_results(*results, nodes)
    return parent_list[0].numpy(), selected[0].numpy(), tokens[0].numpy()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    topk=st.integers(1, 4),
    steps=st.integers(1, 4),
    data=st.data(),
)
def test_a_dynamic_tree_is_the_one_that_sglang_selects(
    seed: int, topk: int, steps: int, data: st.DataObject
) -> None:
    nodes = data.draw(st.integers(2, 1 + topk + (steps - 1) * topk * topk))
    model = random_model(seed, 7)
    parent_list, selected, tokens = by_sglang((3,), model, topk, steps, nodes)
    tree = draft_dynamic_tree((3,), model, topk=topk, num_steps=steps, num_draft_tokens=nodes)
    np.testing.assert_array_equal(tree.tokens[1:], tokens)
    if steps > 1:
        np.testing.assert_array_equal(
            tree.parents, parents_from_selection(parent_list, selected, topk)
        )
    else:
        assert set(tree.parents[1:].tolist()) == {0}


def node_tree(tokens: list[int], parents: list[int], **rest: object) -> DraftTree:
    return DraftTree((9,), np.array(tokens), np.array(parents), **rest)


MODEL = fixed(0.5, 0.3, 0.2)
ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "tree without a prefix": (
        lambda: DraftTree((), np.array([9]), np.array([-1])),
        r"prefix = \(\)",
    ),
    "tokens and parents differ": (lambda: node_tree([9, 1], [-1]), r"tokens = \(2,\).*\(1,\)"),
    "root is another token": (lambda: node_tree([8], [-1]), r"tokens\[0\] = 8.*9"),
    "equal siblings": (lambda: node_tree([9, 1, 1], [-1, 0, 0]), "tokens.*distinct"),
    "proposals too few": (
        lambda: node_tree([9, 1], [-1, 0], proposals=np.zeros((0, 2))),
        r"proposals = \(0, 2\).*\(1, vocab\)",
    ),
    "proposals a vector": (
        lambda: node_tree([9, 1], [-1, 0], proposals=np.zeros(1)),
        r"proposals = \(1,\)",
    ),
    "no nodes": (lambda: tree_attention_mask([]), r"parents = \(0,\)"),
    "parents a matrix": (lambda: tree_depths([[-1]]), r"parents = \(1, 1\)"),
    "parents floats": (lambda: retrieval_arrays([-1.0, 0.0]), "parents.*integers"),
    "root has a parent": (lambda: retrieval_arrays([0, 0]), r"parents\[0\] = 0"),
    "parent after its child": (lambda: tree_depths([-1, 2, 0]), r"parents = \[2\]"),
    "second root": (lambda: tree_attention_mask([-1, -1]), r"parents = \[-1\]"),
    "selection topk": (lambda: parents_from_selection([-1], [0], 0), "topk = 0"),
    "orphan": (lambda: parents_from_selection([-1, 0, 1], [1, 2], 2), "selected = 2.*parents"),
    "candidate too large": (lambda: parents_from_selection([-1, 0], [0, 9], 2), "selected = 9"),
    "chain without a prefix": (lambda: draft_chain((), MODEL, 1), r"prefix = \(\)"),
    "chain of 0": (lambda: draft_chain((1,), MODEL, 0), "num_steps = 0"),
    "chain coins": (lambda: draft_chain((1,), MODEL, 2, coins=[0.5]), r"coins = \(1,\).*\(2,\)"),
    "chain coin of 1": (lambda: draft_chain((1,), MODEL, 1, coins=[1.0]), r"coins = \[1\.0\]"),
    "draft distribution": (
        lambda: draft_chain((1,), fixed(0.5, 0.6), 1),
        r"draft probabilities after \(1,\)",
    ),
    "tree without widths": (lambda: draft_tree((1,), MODEL, []), r"widths = \[\]"),
    "width of 0": (lambda: draft_tree((1,), MODEL, [2, 0]), r"widths = 0.*\[1, 6\]"),
    "width too large": (lambda: draft_tree((1,), MODEL, [4]), r"widths = 4.*\[1, 3\]"),
    "static tree without a prefix": (lambda: draft_tree((), MODEL, [1]), r"prefix = \(\)"),
    "dynamic tree without a prefix": (
        lambda: draft_dynamic_tree((), MODEL, topk=1, num_steps=1, num_draft_tokens=2),
        r"prefix = \(\)",
    ),
    "topk of 0": (
        lambda: draft_dynamic_tree((1,), MODEL, topk=0, num_steps=1, num_draft_tokens=2),
        "topk = 0",
    ),
    "topk above the vocabulary": (
        lambda: draft_dynamic_tree((1,), MODEL, topk=4, num_steps=1, num_draft_tokens=2),
        r"topk = 4.*\[1, 3\]",
    ),
    "no steps": (
        lambda: draft_dynamic_tree((1,), MODEL, topk=1, num_steps=0, num_draft_tokens=2),
        "num_steps = 0",
    ),
    "only a root": (
        lambda: draft_dynamic_tree((1,), MODEL, topk=1, num_steps=1, num_draft_tokens=1),
        r"num_draft_tokens = 1.*\[2, 2\]",
    ),
    "more nodes than candidates": (
        lambda: draft_dynamic_tree((1,), MODEL, topk=2, num_steps=2, num_draft_tokens=8),
        r"num_draft_tokens = 8.*\[2, 7\]",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_user_error_names_the_argument_its_value_and_the_range(name: str) -> None:
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()
