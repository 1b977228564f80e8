"""Tree building against SGLang's Triton kernel and against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference.trees import tree_attention_mask, tree_depths
from specvlm_sglang.cpu.kernels.tree import (
    FULL_MASK,
    QLEN_ONLY,
    QLEN_ONLY_BITPACKING,
    build_tree_kernel_efficient,
)
from tests.support.draft_trees import TREE_SHAPES, DraftedTrees, draft
from tests.support.triton_interpreter import interpreted

TRITON = "sglang.kernels.ops.speculative.spec_tree:sgl_build_tree_kernel_triton"
BATCHES = (1, 2, 7)
SPARE = 5
"""Cells of a mask buffer beyond what the batch needs: SGLang preallocates for its largest batch."""


def lengths(batch: int) -> torch.Tensor:
    return torch.randint(0, 30, (batch,), generator=torch.Generator().manual_seed(batch))


def buffers(trees: DraftedTrees, seq_lens: torch.Tensor, mode: int) -> list[torch.Tensor]:
    batch, n = trees.tokens.shape
    if mode == QLEN_ONLY_BITPACKING:
        dtype = torch.uint8 if n <= 8 else torch.uint16 if n <= 16 else torch.uint32
        mask = torch.zeros(batch * n, dtype=dtype)
    else:
        prefixes = int(seq_lens.sum()) if mode == FULL_MASK else 0
        mask = torch.ones(n * (prefixes + batch * n) + SPARE, dtype=torch.bool)
    links = [torch.full((batch, n), -1) for _ in range(3)]
    return [mask, torch.empty(batch * n, dtype=torch.int64), *links]


def shape_arguments(trees: DraftedTrees, mode: int) -> tuple[int, int, int, int]:
    return trees.topk, trees.steps, trees.nodes, mode


@pytest.mark.parametrize("mode", [FULL_MASK, QLEN_ONLY])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", TREE_SHAPES, ids=str)
def test_a_tree_equals_the_one_sglangs_triton_kernel_builds(
    shape: tuple[int, int, int], batch: int, mode: int
) -> None:
    trees, seq_lens = draft(batch, shape, seed=batch), lengths(batch)
    arguments = (trees.parent_list, trees.selected, seq_lens)
    ours, theirs = buffers(trees, seq_lens, mode), buffers(trees, seq_lens, mode)
    build_tree_kernel_efficient(*arguments, *ours, *shape_arguments(trees, mode))
    interpreted(TRITON, *arguments, *theirs, *shape_arguments(trees, mode))
    for name, found, expected in zip(
        ("mask", "positions", "index", "child", "sibling"), ours, theirs, strict=True
    ):
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("shape", TREE_SHAPES, ids=str)
def test_a_tree_equals_the_references(shape: tuple[int, int, int], batch: int) -> None:
    trees, seq_lens = draft(batch, shape, seed=10 + batch), lengths(batch)
    mask, positions, *links = buffers(trees, seq_lens, QLEN_ONLY)
    build_tree_kernel_efficient(
        trees.parent_list,
        trees.selected,
        seq_lens,
        mask,
        positions,
        *links,
        *shape_arguments(trees, QLEN_ONLY),
    )
    n = trees.nodes
    for found, expected in zip(links, trees.links, strict=True):
        assert torch.equal(found, expected)
    for request, seq_len in enumerate(seq_lens.tolist()):
        parents = trees.parents(request)
        square = mask[: batch * n * n].view(batch, n, n)[request]
        assert np.array_equal(square.numpy(), tree_attention_mask(parents))
        found_depths = positions.view(batch, n)[request] - seq_len
        assert found_depths.tolist() == tree_depths(parents).tolist()


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("nodes", [4, 8, 9, 16, 17, 32])
def test_a_bit_packed_mask_holds_one_bit_for_each_visible_node(nodes: int, batch: int) -> None:
    trees, seq_lens = draft(batch, (4, 4, nodes), seed=nodes), lengths(batch)
    mask, *rest = buffers(trees, seq_lens, QLEN_ONLY_BITPACKING)
    build_tree_kernel_efficient(
        trees.parent_list,
        trees.selected,
        seq_lens,
        mask,
        *rest,
        *shape_arguments(trees, QLEN_ONLY_BITPACKING),
    )
    words = mask.to(torch.int64).view(batch, nodes, 1)
    bits = (words >> torch.arange(nodes)) & 1
    for request in range(batch):
        expected = tree_attention_mask(trees.parents(request))
        assert np.array_equal(bits[request].numpy().astype(bool), expected)


def test_more_nodes_than_a_packed_mask_has_bits_are_refused() -> None:
    trees, seq_lens = draft(1, (4, 4, 33)), lengths(1)
    mask = torch.zeros(33, dtype=torch.uint32)
    rest = buffers(trees, seq_lens, QLEN_ONLY)[1:]
    with pytest.raises(ValueError, match="num_verify_tokens=33"):
        build_tree_kernel_efficient(
            trees.parent_list,
            trees.selected,
            seq_lens,
            mask,
            *rest,
            *shape_arguments(trees, QLEN_ONLY_BITPACKING),
        )


def test_an_unknown_mask_mode_is_refused() -> None:
    trees, seq_lens = draft(1, (2, 3, 6)), lengths(1)
    with pytest.raises(ValueError, match="tree_mask_mode=3"):
        build_tree_kernel_efficient(
            trees.parent_list,
            trees.selected,
            seq_lens,
            *buffers(trees, seq_lens, QLEN_ONLY),
            *shape_arguments(trees, 3),
        )


def test_a_node_whose_parent_was_not_kept_is_left_out_of_the_links_as_in_sglang() -> None:
    parent_list = torch.tensor([[-1, 0, 1], [-1, 0, 1]])
    # Candidate 4 continues candidate 1, which the first request did not keep.
    selected = torch.tensor([[0, 2, 4], [0, 1, 4]])
    seq_lens = torch.tensor([3, 5])
    outputs = []
    for build in (build_tree_kernel_efficient, None):
        rest = [torch.empty(8, dtype=torch.int64), *(torch.full((2, 4), -1) for _ in range(3))]
        mask = torch.ones(32, dtype=torch.bool)
        arguments = (parent_list, selected, seq_lens, mask, *rest, 2, 2, 4, QLEN_ONLY)
        if build is None:
            interpreted(TRITON, *arguments)
        else:
            build(*arguments)
        outputs.append([mask, *rest])
    for ours, theirs in zip(*outputs, strict=True):
        assert torch.equal(ours, theirs)
    children, siblings = outputs[0][3][0], outputs[0][4][0]
    assert 3 not in children.tolist() + siblings.tolist()
