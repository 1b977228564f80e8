"""Draft trees: positions, attention mask and links from the arrays of the drafting steps."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.int64]

# SGLang's ``TreeMaskMode``.
FULL_MASK = 0
QLEN_ONLY = 1
QLEN_ONLY_BITPACKING = 2

_MOST_PACKED_TOKENS = 32
_NO_PARENT = -2


def build_tree_kernel_efficient(
    parent_list: torch.Tensor,
    top_scores_index: torch.Tensor,
    seq_lens: torch.Tensor,
    tree_mask: torch.Tensor,
    positions: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    topk: int,
    spec_steps: int,
    num_verify_tokens: int,
    tree_mask_mode: int,
) -> None:
    """Describe each request's draft tree of ``n = num_verify_tokens`` nodes, root included.

    Parameters
    ----------
    parent_list
        Int64 ``[batch, 1 + topk * (spec_steps - 1)]``: entry 0 stands for the root; then, step by
        step, the candidates that were expanded. May be ``[batch, 0]`` for one step.
    top_scores_index
        Int64 ``[batch, n - 1]``: ascending candidates that are kept.
    seq_lens
        Int64 ``[batch]``: tokens before the root.
    tree_mask
        Written. ``FULL_MASK``: bool or uint8, flat; per request ``n`` rows of ``seq_len + n``
        columns, of which the last ``n`` are written. ``QLEN_ONLY``: flat, ``n`` rows of ``n``.
        ``QLEN_ONLY_BITPACKING``: one uint8, uint16 or uint32 per row (n <= 8, 16, 32), bit ``j``
        for node ``j``. A longer buffer keeps its tail.
    positions
        Int64 ``[batch * n]``; written: ``seq_len`` plus the node's depth.
    retrieve_index, retrieve_next_token, retrieve_next_sibling
        Int64 ``[batch, n]``; written: row in the verified batch, first child, next sibling, -1
        where there is none.
    topk
        Candidates per expanded node.
    spec_steps
        Draft steps: no node is deeper.
    num_verify_tokens
        ``n``.
    tree_mask_mode
        One of SGLang's ``TreeMaskMode``.

    Raises
    ------
    ValueError
        An unknown mode, or a packed mask for more than 32 nodes.

    Notes
    -----
    Source: ``kernels.ops.speculative.spec_tree.build_tree_kernel_efficient_func``. As there, a node
    whose parent was not kept (NaN scores) sees the root and itself, and nothing links to it.
    """
    batch, n = seq_lens.shape[0], num_verify_tokens
    if topk == 1 and n == spec_steps + 1:
        topology = _chain(n)
    else:
        topology = _topology(parent_list.numpy(), top_scores_index.numpy(), topk, spec_steps)
    torch.add(seq_lens.view(-1, 1), topology.depths, out=positions.view(batch, n))
    retrieve_index.copy_(torch.arange(batch * n).view(batch, n))
    retrieve_next_token.copy_(topology.first_child)
    retrieve_next_sibling.copy_(topology.next_sibling)
    visible = topology.visible.expand(batch, n, n)
    if tree_mask_mode == FULL_MASK:
        _write_beside_prefixes(visible, seq_lens, tree_mask)
    elif tree_mask_mode == QLEN_ONLY:
        tree_mask.view(-1)[: batch * n * n].view(batch, n, n).copy_(visible)
    elif tree_mask_mode == QLEN_ONLY_BITPACKING:
        _write_packed(visible, tree_mask)
    else:
        raise ValueError(f"tree_mask_mode={tree_mask_mode!r} is not one of 0, 1, 2 (TreeMaskMode)")


class _Topology(NamedTuple):
    """The shape of ``batch`` trees, or of one that all requests share (``batch`` = 1).

    ``depths``, ``first_child`` and ``next_sibling`` are int64 ``[batch, n]``; ``visible``, bool
    ``[batch, n, n]``, says which columns' nodes a row's node attends to.
    """

    depths: torch.Tensor
    visible: torch.Tensor
    first_child: torch.Tensor
    next_sibling: torch.Tensor


@cache
def _chain(n: int) -> _Topology:
    nodes = torch.arange(n).view(1, n)
    visible = torch.ones((1, n, n), dtype=torch.bool).tril_()
    child = torch.where(nodes < n - 1, nodes + 1, -1)
    return _Topology(nodes, visible, child, torch.full((1, n), -1))


def _topology(parent_list: IntArray, selected: IntArray, topk: int, spec_steps: int) -> _Topology:
    parents = _parents(parent_list, selected, topk)
    batch, n = parents.shape
    nodes = np.arange(n)
    requests = np.arange(batch)[:, None]
    visible = np.zeros((batch, n, n), dtype=np.bool_)
    visible[:, :, 0] = True
    depths = np.zeros((batch, n), dtype=np.int64)
    ancestor = np.broadcast_to(nodes, (batch, n))
    for _ in range(spec_steps):
        visible[requests, nodes, ancestor] = True
        depths += ancestor > 0
        # Whoever has arrived at the root, or nowhere, stays at the root.
        ancestor = np.maximum(parents[requests, ancestor], 0)
    # The smallest node that qualifies, n where none does.
    child = np.where(parents[:, None, :] == nodes[:, None], nodes, n).min(axis=2)
    same_parent = (parents[:, :, None] == parents[:, None, :]) & (parents >= 0)[:, :, None]
    sibling = np.where(same_parent & (nodes > nodes[:, None]), nodes, n).min(axis=2)
    child[child == n] = -1
    sibling[sibling == n] = -1
    return _Topology(*map(torch.from_numpy, (depths, visible, child, sibling)))


def _parents(parent_list: IntArray, selected: IntArray, topk: int) -> IntArray:
    """Node index of each node's parent, ``[batch, n]``: -1 for the root, -2 for a lost parent."""
    batch, kept = selected.shape
    parents = np.zeros((batch, kept + 1), dtype=np.int64)
    parents[:, 0] = -1
    if parent_list.shape[1] > 1:
        group = selected // topk
        parent = parent_list[np.arange(batch)[:, None], group]
        is_parent = selected[:, None, :] == parent[:, :, None]
        found = np.where(is_parent.any(axis=2), is_parent.argmax(axis=2) + 1, _NO_PARENT)
        parents[:, 1:] = np.where(group == 0, 0, found)
    return parents


def _write_beside_prefixes(
    visible: torch.Tensor, seq_lens: torch.Tensor, tree_mask: torch.Tensor
) -> None:
    n = visible.shape[1]
    flat, start = tree_mask.view(-1), 0
    for seq_len, tree in zip(seq_lens.tolist(), visible, strict=True):
        stop = start + n * (seq_len + n)
        flat[start:stop].view(n, seq_len + n)[:, seq_len:] = tree
        start = stop


def _write_packed(visible: torch.Tensor, tree_mask: torch.Tensor) -> None:
    batch, n = visible.shape[:2]
    if n > _MOST_PACKED_TOKENS:
        raise ValueError(
            f"num_verify_tokens={n} is not allowed: a bit-packed tree mask holds at most "
            f"{_MOST_PACKED_TOKENS}"
        )
    width = 1 if n <= 8 else 2 if n <= 16 else 4
    bits = (visible.to(torch.int64) << torch.arange(n)).sum(2)
    packed = bits.view(torch.uint8).view(batch, n, 8)[:, :, :width]
    tree_mask.view(torch.uint8)[: batch * n * width].view(batch, n, width).copy_(packed)
