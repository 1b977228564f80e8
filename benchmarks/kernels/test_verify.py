"""Time of greedy verification on the CPU: the serving twin beside the NumPy reference.

    pytest benchmarks/kernels/test_verify.py

Chains of five drafts and trees of 26 nodes, whose target follows a child more often than not. The
reference takes one request after the other and asks for whole distributions, which are made before
the clock starts. SGLang's Triton kernel is not here: its interpreter's time says nothing.
"""

import numpy as np
import pytest
import torch

from reference.verification import verify_greedily
from specvlm_sglang.cpu.kernels.verify import verify_tree_greedy
from tests.support.draft_trees import draft

SHAPES = {"chain of 6": (1, 5, 6), "tree of 26": (4, 5, 26)}
BATCHES = (1, 8, 32)
VOCABULARY = 512


def case_of(shape, batch):
    trees = draft(batch, SHAPES[shape], vocabulary=VOCABULARY, seed=batch)
    generator = torch.Generator().manual_seed(batch)
    wanted = torch.randint(0, VOCABULARY, trees.tokens.shape, generator=generator)
    for request in range(batch):
        for node, parent in enumerate(trees.parents(request).tolist()):
            if node and torch.rand((), generator=generator) < 0.6:
                wanted[request, parent] = trees.tokens[request, node]
    return trees, wanted


def reference_of(trees, wanted):
    one_hot = np.eye(VOCABULARY)
    requests = []
    for request in range(len(wanted)):
        tree = trees.reference(request)
        after = {
            tree.path(node): one_hot[int(wanted[request, node])] for node in range(trees.nodes)
        }
        requests.append((tree, after.__getitem__))
    return lambda: [list(verify_greedily(tree, after).tokens) for tree, after in requests]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES)
def test_numpy(benchmark, shape, batch):
    benchmark.group = f"verify {batch} x {shape}"
    emitted = benchmark(reference_of(*case_of(shape, batch)))
    assert len(emitted) == batch


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", SHAPES)
def test_torch(benchmark, shape, batch):
    benchmark.group = f"verify {batch} x {shape}"
    trees, wanted = case_of(shape, batch)
    predicts, index, accepted = outputs = trees.outputs()
    benchmark(verify_tree_greedy, *outputs, trees.tokens, *trees.links, wanted)
    emitted = [
        predicts[index[request, : int(accepted[request]) + 1].long()].tolist()
        for request in range(batch)
    ]
    assert emitted == reference_of(trees, wanted)()
