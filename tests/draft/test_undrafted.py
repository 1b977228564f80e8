"""Rounds without any draft have the shape of rounds with one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from specvlm_sglang.draft.undrafted import Undrafted
from tests.support.draft_trees import TREE_SHAPES


@pytest.mark.parametrize("shape", TREE_SHAPES, ids=str)
def test_every_chain_and_tree_can_be_built_of_it(shape: tuple[int, int, int]) -> None:
    topk, steps, nodes = shape
    undrafted = Undrafted(topk=topk, steps=steps, nodes=nodes, device="cpu")
    parents, scores, tokens, probabilities = undrafted.drafts(3)
    assert tokens.shape == scores.shape == (3, nodes - 1)
    assert parents.shape[0] == 3
    assert probabilities is None
    assert not tokens.any()
    assert (scores.diff(dim=1) > 0).all()
    assert torch.equal(parents[0], parents[2])


def test_the_next_round_finds_a_first_token_of_its_width() -> None:
    handed = SimpleNamespace()
    Undrafted(topk=4, steps=3, nodes=10, device="cpu").hand_on(handed, 2)
    assert handed.topk_p.shape == handed.topk_index.shape == (2, 4)
    assert (handed.topk_p.dtype, handed.topk_index.dtype) == (torch.float32, torch.int64)
