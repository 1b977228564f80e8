"""Target verify: chains, trees, both layouts of SGLang's tree mask."""

from __future__ import annotations

import random

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardMode
from sglang.srt.speculative.eagle_info import EagleVerifyInput

from specvlm_sglang.cpu.attention import plan
from specvlm_sglang.cpu.attention.backend import SpecVLMTorchAttnBackend
from tests.support.attention import TYPES_AND_HEADS, AttentionRig

LAYOUTS = ["full", "tree columns only"]


def random_tree(nodes: int, seed: int) -> list[list[int]]:
    """Ancestors of each node, itself last; node 0 is the root."""
    choose = random.Random(seed)
    paths = [[0]]
    for node in range(1, nodes):
        paths.append([*paths[choose.randrange(max(0, node - 5), node)], node])
    return paths


def flat_mask(rig: AttentionRig, trees: list[list[list[int]]], layout: str) -> torch.Tensor:
    """The trees as SGLang's kernels write them."""
    blocks = []
    for cached, paths in zip(rig.cached, trees, strict=True):
        block = torch.zeros(len(paths), len(paths), dtype=torch.bool)
        for node, path in enumerate(paths):
            block[node, path] = True
        context = torch.ones(len(paths), cached if layout == "full" else 0, dtype=torch.bool)
        blocks.append(torch.cat([context, block], dim=1).flatten())
    return torch.cat(blocks)


def verify(
    rig: AttentionRig, trees: list[list[list[int]]], mask: torch.Tensor | None, topk: int
) -> None:
    """Verify one tree a request and compare with attention along each node's path."""
    nodes = len(trees[0])
    none = torch.empty(0, dtype=torch.int64)
    spec_info = EagleVerifyInput(
        draft_token=none,
        custom_mask=mask,
        positions=none,
        retrieve_index=none,
        retrieve_next_token=none,
        retrieve_next_sibling=none,
        retrieve_cum_len=None,
        spec_steps=3,
        topk=topk,
        draft_token_num=nodes,
        capture_hidden_mode=CaptureHiddenMode.NULL,
        seq_lens_sum=sum(rig.cached),
        seq_lens_cpu=torch.tensor(rig.cached),
    )
    slots = [rig.slots[i][n : n + nodes] for i, n in enumerate(rig.cached)]
    stored = [slot for request in slots for slot in request]
    batch = rig.batch(ForwardMode.TARGET_VERIFY, rig.cached, stored, spec_info=spec_info)
    backend = SpecVLMTorchAttnBackend(rig.runner)
    backend.init_forward_metadata(batch)
    q, out = rig.attend(backend, batch)
    visible = []
    for i, paths in enumerate(trees):
        for path in paths:
            keys = rig.slots[i][: rig.cached[i]] + [slots[i][node] for node in path]
            # A node stands at the depth of its path, not at its place in the tree's list.
            visible.append(keys if rig.window < 0 else keys[-rig.window - 1 :])
    rig.check(q, out, visible)


@pytest.mark.parametrize(("dtype", "heads", "kv_heads"), TYPES_AND_HEADS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("page_size", [1, 16])
def test_a_node_of_a_tree_sees_the_context_and_its_ancestors(
    dtype, layout, heads, kv_heads, page_size
):
    rig = AttentionRig(
        [0, 7, 60, 400], 16, dtype=dtype, heads=heads, kv_heads=kv_heads, page_size=page_size
    )
    trees = [random_tree(16, seed) for seed in range(4)]
    verify(rig, trees, flat_mask(rig, trees, layout), topk=4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [1, 2, 20, 500])
@pytest.mark.parametrize("longest_run", [0, 1])
def test_windows_of_a_tree_count_depths(layout, window, longest_run):
    rig = AttentionRig([0, 7, 60, 400], 12, window=window, longest_run=longest_run)
    trees = [random_tree(12, seed) for seed in range(4)]
    verify(rig, trees, flat_mask(rig, trees, layout), topk=4)


@pytest.mark.parametrize("longest_run", [0, 1, 1100])
@pytest.mark.parametrize("nodes", [8, 48])
@pytest.mark.parametrize("logit_cap", [0.0, 1.5])
def test_long_contexts_and_large_trees(longest_run, nodes, logit_cap):
    rig = AttentionRig([2500, 40], nodes, longest_run=longest_run, logit_cap=logit_cap)
    trees = [random_tree(nodes, seed) for seed in range(2)]
    verify(rig, trees, flat_mask(rig, trees, "full"), topk=4)


@pytest.mark.parametrize("topk", [1, 4])
@pytest.mark.parametrize("longest_run", [0, 4500])
def test_the_tail_after_parts_of_a_very_long_run_keeps_its_mask(topk, longest_run):
    rig = AttentionRig([5000, 4090], 8, longest_run=longest_run)
    chain = [list(range(node + 1)) for node in range(8)]
    trees = [random_tree(8, seed) if topk > 1 else chain for seed in range(2)]
    verify(rig, trees, flat_mask(rig, trees, "full"), topk)


@pytest.mark.parametrize("nodes", [8, 48])
def test_oversized_masks_leave_the_context_out(monkeypatch, nodes):
    monkeypatch.setattr(plan, "MASK_ENTRIES", 500)
    rig = AttentionRig([300, 200], nodes)
    trees = [random_tree(nodes, seed) for seed in range(2)]
    verify(rig, trees, flat_mask(rig, trees, "full"), topk=4)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("window", [-1, 3])
@pytest.mark.parametrize("cached", [[500], [0, 7, 60, 400]])
def test_a_chain_is_causal_with_and_without_its_mask(masked, window, cached):
    rig = AttentionRig(cached, 5, window=window)
    trees = [[list(range(node + 1)) for node in range(5)] for _ in cached]
    verify(rig, trees, flat_mask(rig, trees, "full") if masked else None, topk=1)


def test_a_mask_buffer_may_be_longer_than_the_batch():
    rig = AttentionRig([7, 60], 6)
    trees = [random_tree(6, seed) for seed in range(2)]
    mask = torch.cat([flat_mask(rig, trees, "full"), torch.zeros(1000, dtype=torch.bool)])
    verify(rig, trees, mask, topk=2)


def test_a_mask_of_no_known_layout_is_refused():
    rig = AttentionRig([7, 60], 6)
    trees = [random_tree(6, seed) for seed in range(2)]
    with pytest.raises(ValueError, match="custom_mask has 73 entries"):
        verify(rig, trees, torch.ones(73, dtype=torch.bool), topk=2)


def test_a_verify_without_its_input_is_refused():
    rig = AttentionRig([7], 6)
    batch = rig.batch(ForwardMode.TARGET_VERIFY, [7], rig.slots[0][7:13])
    with pytest.raises(ValueError, match="spec_info"):
        SpecVLMTorchAttnBackend(rig.runner).init_forward_metadata(batch)
