"""Penalised trees against the reference, node by node."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference.penalties import Penalties, penalise_nodes
from reference.trees import DraftTree
from specvlm_sglang.lossless import penalties as ours
from specvlm_sglang.lossless.emitted import EmittedTokens
from specvlm_sglang.lossless.parameters import LooksBack
from tests.support.draft_trees import TREE_SHAPES, DraftedTrees, draft

VOCABULARY = 40
PROMPT = (7, 7, 3)
ASKED = [
    LooksBack(frequency=1.5),
    LooksBack(),
    LooksBack(presence=-0.7),
    LooksBack(repetition=1.3),
    LooksBack(repetition=0.8, frequency=-1.0, presence=0.4),
    LooksBack(min_new_tokens=4, stop_tokens=(2, 11)),
    LooksBack(frequency=0.3, repetition=1.05, min_new_tokens=9, stop_tokens=(5,)),
]
"""One request each, among them one that asks for nothing."""


def outputs(trees: DraftedTrees, seed: int) -> list[list[int]]:
    """What each request has emitted; its tree's root comes last."""
    chance = np.random.default_rng(seed)
    roots = trees.tokens[:, 0].tolist()
    return [
        # Few tokens, so that drafts repeat them.
        [*chance.integers(0, 12, size=chance.integers(0, 8)).tolist(), root]
        for root in roots
    ]


def emitted_by(outputs: list[list[int]], rows: list[int]) -> EmittedTokens:
    emitted = EmittedTokens(rows=max(rows) + 1, vocabulary=VOCABULARY, device="cpu")
    for row, asked, output in zip(rows, ASKED, outputs, strict=True):
        asks = asked if asked.counts_tokens or asked.withholds_stops else None
        emitted.begin(row, asks, output[:-1], torch.tensor(output[-1:]))
    return emitted


def judged(trees: DraftedTrees, logits: torch.Tensor, penalties: ours.BatchPenalties) -> None:
    parents = ours.parents_of(trees.links[1], trees.links[2], topk=trees.topk)
    paths = ours.paths_of(trees.tokens, parents, steps=trees.steps)
    ours.penalise_nodes(logits, paths, penalties)


def reference(
    trees: DraftedTrees, request: int, output: list[int], logits: torch.Tensor
) -> np.ndarray:
    asked = ASKED[request]
    tree = DraftTree(
        (*PROMPT, *output), trees.tokens[request].numpy(), np.maximum(trees.parents(request), -1)
    )
    chosen = Penalties(
        asked.frequency,
        asked.presence,
        asked.repetition,
        asked.min_new_tokens,
        asked.stop_tokens,
    )
    return penalise_nodes(tree, logits.double().numpy(), len(PROMPT), chosen)


@pytest.mark.parametrize("at_once", [1, 3, len(ASKED)])
@pytest.mark.parametrize("shape", TREE_SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_every_node_gets_the_logits_of_plain_decoding(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], seed: int, at_once: int
) -> None:
    """However many requests are penalised together."""
    monkeypatch.setitem(ours._ELEMENTS_AT_ONCE, "cpu", at_once * shape[2] * VOCABULARY)
    trees = draft(len(ASKED), shape, vocabulary=12, seed=seed)
    before = outputs(trees, seed)
    rows = [3, 0, 5, 1, 9, 2, 7]
    emitted = emitted_by(before, rows)
    raw = 3 * torch.randn(
        len(ASKED) * trees.nodes, VOCABULARY, generator=torch.Generator().manual_seed(seed)
    )
    logits = raw.clone()
    judged(trees, logits, emitted.of_batch(rows, torch.tensor(rows)))
    found = logits.view(len(ASKED), trees.nodes, VOCABULARY)
    for request, output in enumerate(before):
        given = raw.view(len(ASKED), trees.nodes, VOCABULARY)[request]
        expected = reference(trees, request, output, given)
        reachable = trees.parents(request) >= -1
        np.testing.assert_allclose(
            found[request].double().numpy()[reachable], expected[reachable], atol=2e-5
        )
    assert torch.equal(found[1], raw.view_as(found)[1]), "a request that asks for nothing"


def test_rows_of_a_wider_table_are_changed_in_place() -> None:
    trees = draft(len(ASKED), (2, 3, 6), vocabulary=12)
    before = outputs(trees, 0)
    rows = list(range(len(ASKED)))
    emitted = emitted_by(before, rows)
    wide = torch.randn(len(ASKED) * trees.nodes, VOCABULARY + 24)
    narrow = wide[:, :VOCABULARY].clone()
    beyond = wide[:, VOCABULARY:].clone()
    judged(trees, narrow, emitted.of_batch(rows, torch.tensor(rows)))
    judged(trees, wide[:, :VOCABULARY], emitted.of_batch(rows, torch.tensor(rows)))
    assert torch.equal(wide[:, :VOCABULARY], narrow)
    assert torch.equal(wide[:, VOCABULARY:], beyond)


def test_half_precision_logits_round_as_sglangs_do() -> None:
    logits = torch.tensor([[1.0, -1.0, 300.0]], dtype=torch.bfloat16)
    penalties = ours.BatchPenalties(
        *(torch.tensor([[value]]) for value in (0.3, 0.1, 1.1)),
        counts=torch.tensor([[1, 2, 0]], dtype=torch.int32),
        emitted=torch.tensor([[3]]),
        min_new_tokens=torch.tensor([[0]]),
        stop_tokens=None,
    )
    expected = logits.clone()
    expected.sub_(torch.tensor([[0.4, 0.7, 0.0]]))
    scale = torch.tensor([[1.1, 1.1, 1.0]])
    expected[:] = torch.where(expected < 0, expected * scale, expected / scale)
    # Of a root alone, whether or not something might have been drafted.
    for steps in (0, 1):
        found = logits.clone()
        paths = ours.paths_of(torch.tensor([[1]]), torch.tensor([[0]]), steps=steps)
        ours.penalise_nodes(found, paths, penalties)
        assert torch.equal(found, expected)


def test_a_root_alone_may_not_end_before_its_minimum() -> None:
    logits = torch.zeros(2, 4)
    penalties = ours.BatchPenalties(
        *(torch.tensor([[value]] * 2) for value in (0.0, 0.0, 1.0)),
        counts=None,
        emitted=torch.tensor([[3], [5]]),
        min_new_tokens=torch.tensor([[5], [5]]),
        stop_tokens=torch.tensor([[2, 2], [2, 2]]),
    )
    paths = ours.paths_of(torch.tensor([[1], [1]]), torch.tensor([[0], [0]]), steps=0)
    ours.penalise_nodes(logits, paths, penalties)
    assert logits[0].tolist() == [0.0, 0.0, -torch.inf, 0.0]
    assert logits[1].tolist() == [0.0] * 4


def test_parents_follow_from_the_links() -> None:
    for shape in TREE_SHAPES:
        trees = draft(5, shape)
        found = ours.parents_of(trees.links[1], trees.links[2], topk=trees.topk)
        for request in range(5):
            expected = trees.parents(request)
            reachable = expected >= 0
            assert found[request].numpy()[reachable].tolist() == expected[reachable].tolist()
