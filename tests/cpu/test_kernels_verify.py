"""Greedy verification against SGLang's Triton kernel and against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference.verification import verify_greedily
from specvlm_sglang.cpu.kernels.verify import verify_tree_greedy
from tests.support.draft_trees import TREE_SHAPES, DraftedTrees, draft
from tests.support.triton_interpreter import interpreted

TRITON = "sglang.kernels.ops.speculative.spec_tree:verify_tree_greedy_triton"
VOCABULARY = 40


def predictions(trees: DraftedTrees, seed: int) -> torch.Tensor:
    """Per node a token: mostly that of one of its children."""
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.randint(0, VOCABULARY, trees.tokens.shape, generator=generator)
    for request in range(len(wanted)):
        for node, parent in enumerate(trees.parents(request).tolist()):
            if node and torch.rand((), generator=generator) < 0.6:
                wanted[request, parent] = trees.tokens[request, node]
    return wanted


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("shape", TREE_SHAPES, ids=str)
def test_buffers_equal_those_that_sglangs_triton_kernel_writes(
    shape: tuple[int, int, int], batch: int
) -> None:
    trees = draft(batch, shape, vocabulary=VOCABULARY, seed=batch)
    wanted = predictions(trees, seed=batch)
    ours, theirs = trees.outputs(), trees.outputs()
    returned = verify_tree_greedy(*ours, trees.tokens, *trees.links, wanted, topk=shape[0])
    interpreted(TRITON, *theirs, trees.tokens, *trees.links, wanted)
    assert all(found is given for found, given in zip(returned, ours, strict=True))
    for found, expected in zip(ours, theirs, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", TREE_SHAPES, ids=str)
def test_emitted_tokens_and_accepted_nodes_equal_the_references(
    shape: tuple[int, int, int],
) -> None:
    trees = draft(32, shape, vocabulary=VOCABULARY, seed=5)
    wanted = predictions(trees, seed=6)
    predicts, accept_index, accepted = trees.outputs()
    verify_tree_greedy(predicts, accept_index, accepted, trees.tokens, *trees.links, wanted)
    for request in range(32):
        tree = trees.reference(request)
        argmax = {tree.path(node): int(wanted[request, node]) for node in range(trees.nodes)}
        expected = verify_greedily(
            tree, lambda path, argmax=argmax: np.eye(VOCABULARY)[argmax[path]]
        )
        path = accept_index[request, : int(accepted[request]) + 1].long()
        assert (path - request * trees.nodes).tolist() == list(expected.nodes)
        assert predicts[path].tolist() == list(expected.tokens)
        assert (accept_index[request, len(path) :] == -1).all()
    assert len(set(accepted.tolist())) > 1, "all paths are equally long: nothing was shown"
