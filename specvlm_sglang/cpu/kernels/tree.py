"""Draft trees: positions, attention mask and links from the arrays of the drafting steps."""

from __future__ import annotations

import torch

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
        parents = torch.arange(-1, n - 1).expand(batch, n)
        visible = torch.ones((n, n), dtype=torch.bool).tril_().expand(batch, n, n)
        depths = torch.arange(n).expand(batch, n)
    else:
        parents = _parents(parent_list, top_scores_index, topk)
        visible, depths = _ancestors(parents, spec_steps)
    torch.add(seq_lens.view(-1, 1), depths, out=positions.view(batch, n))
    _link(parents, retrieve_index, retrieve_next_token, retrieve_next_sibling)
    if tree_mask_mode == FULL_MASK:
        _write_beside_prefixes(visible, seq_lens, tree_mask)
    elif tree_mask_mode == QLEN_ONLY:
        tree_mask.view(-1)[: batch * n * n].view(batch, n, n).copy_(visible)
    elif tree_mask_mode == QLEN_ONLY_BITPACKING:
        _write_packed(visible, tree_mask)
    else:
        raise ValueError(f"tree_mask_mode={tree_mask_mode!r} is not one of 0, 1, 2 (TreeMaskMode)")


def _parents(parent_list: torch.Tensor, selected: torch.Tensor, topk: int) -> torch.Tensor:
    """Node index of each node's parent, ``[batch, n]``: -1 for the root, -2 for a lost parent."""
    batch, kept = selected.shape
    group = selected.div(topk, rounding_mode="floor")
    parents = torch.zeros((batch, kept + 1), dtype=torch.int64)
    parents[:, 0] = -1
    if parent_list.shape[1] > 1:
        parent = parent_list.gather(1, group)
        at = torch.searchsorted(selected, parent).clamp_(max=kept - 1)
        found = selected.gather(1, at) == parent
        parents[:, 1:] = torch.where(group == 0, 0, torch.where(found, at + 1, _NO_PARENT))
    return parents


def _ancestors(parents: torch.Tensor, spec_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes that each node may attend to, bool ``[batch, n, n]``, and depths, ``[batch, n]``."""
    batch, n = parents.shape
    visible = torch.zeros((batch, n, n), dtype=torch.bool)
    visible[:, :, 0] = True
    depths = torch.zeros((batch, n), dtype=torch.int64)
    node = torch.arange(n).repeat(batch, 1)
    for _ in range(spec_steps):
        visible.scatter_(2, node.unsqueeze(2), True)
        depths += node > 0
        # Whoever has arrived at the root, or nowhere, stays at the root.
        node = parents.gather(1, node).clamp_(min=0)
    return visible, depths


def _link(
    parents: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
) -> None:
    batch, n = parents.shape
    nodes = torch.arange(n)
    torch.arange(batch * n, out=retrieve_index.view(-1))
    # The smallest node that qualifies, n where none does.
    child = torch.where(parents.unsqueeze(1) == nodes.view(n, 1), nodes, n).amin(2)
    retrieve_next_token.copy_(child.masked_fill_(child == n, -1))
    same_parent = (parents.unsqueeze(2) == parents.unsqueeze(1)) & (parents >= 0).unsqueeze(2)
    younger = same_parent & (nodes > nodes.view(n, 1))
    sibling = torch.where(younger, nodes, n).amin(2)
    retrieve_next_sibling.copy_(sibling.masked_fill_(sibling == n, -1))


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
