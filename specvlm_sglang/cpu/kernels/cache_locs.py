"""KV slots of the draft, verify and draft-extend passes, from and into the request table.

``req_to_token`` is SGLang's request table, int32 ``[rows, width]``: the KV slot of every position
of every request. ``req_pool_indices``, int ``[batch]``, names the rows of a batch. A window that
does not fit into its row is a broken invariant of SGLang and raises ``ValueError``.
"""

from __future__ import annotations

import torch


def assign_req_to_token_pool(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    batch_size: int,
) -> None:
    """Enter newly allocated slots into the request table.

    Parameters
    ----------
    req_pool_indices, start_offset, end_offset
        Int ``[batch]``: request ``i`` gets positions ``[start_offset[i], end_offset[i])``.
    req_to_token
        Int ``[rows, width]``; written.
    out_cache_loc
        Int ``[sum of lengths]``: the slots, request after request.
    batch_size
        Requests to serve, from the front.

    Notes
    -----
    Source: ``sglang.srt.mem_cache.allocation.assign_req_to_token_pool_func``.
    """
    table, slots = req_to_token.numpy(), out_cache_loc.numpy()
    taken = 0
    for row, start, end in zip(
        req_pool_indices[:batch_size].tolist(),
        start_offset[:batch_size].tolist(),
        end_offset[:batch_size].tolist(),
        strict=True,
    ):
        table[row, start:end] = slots[taken : taken + end - start]
        taken += end - start


def assign_draft_cache_locs_contiguous(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    out_cache_loc: torch.Tensor,
    topk: int,
    num_cols: int,
    positions: torch.Tensor | None = None,
    mrope: torch.Tensor | None = None,
) -> None:
    """Collect the slots that the draft steps write, which follow the committed tokens.

    Parameters
    ----------
    req_pool_indices, seq_lens
        Int ``[batch]``: rows, and committed tokens per request.
    req_to_token
        Int ``[rows, width]``.
    out_cache_loc
        Int ``[batch * topk * num_cols]``; written.
    topk, num_cols
        Branches and columns per branch.
    positions, mrope
        Optional int ``[batch * topk]`` and ``[3, batch * topk]``; filled with each request's
        committed length.

    Notes
    -----
    Source: ``kernels.ops.speculative.cache_locs.assign_draft_cache_locs_contiguous_func``.
    """
    _gather_windows(
        req_pool_indices, req_to_token, seq_lens, out_cache_loc.view(-1, topk * num_cols)
    )
    if positions is not None:
        positions.view(-1, topk).copy_(seq_lens.view(-1, 1))
    if mrope is not None:
        mrope.view(3, -1, topk).copy_(seq_lens.view(1, -1, 1))


def assign_extend_cache_locs(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    batch_size: int,
    draft_token_num: int,
    device: torch.device | str,
) -> torch.Tensor:
    """Collect the slots of positions ``[start_offset, end_offset)`` of each request.

    Parameters
    ----------
    req_pool_indices, start_offset, end_offset
        Int ``[batch]``.
    req_to_token
        Int ``[rows, width]``.
    batch_size, draft_token_num
        The result has room for ``draft_token_num`` slots per request.
    device
        Of the result.

    Returns
    -------
    torch.Tensor
        Int64 ``[batch_size * draft_token_num]``; packed to the front, the rest is uninitialised.

    Notes
    -----
    Source: ``kernels.ops.speculative.cache_locs.assign_extend_cache_locs_func``. The platform also
    hands it to SGLang as ``get_speculative_cache_locs_fn``.
    """
    collected = torch.empty(batch_size * draft_token_num, dtype=torch.int64, device=device)
    table, slots = req_to_token.numpy(), collected.numpy()
    taken = 0
    for row, start, end in zip(
        req_pool_indices[:batch_size].tolist(),
        start_offset[:batch_size].tolist(),
        end_offset[:batch_size].tolist(),
        strict=True,
    ):
        slots[taken : taken + end - start] = table[row, start:end]
        taken += end - start
    return collected


def assign_extend_cache_locs_uniform(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    batch_size: int,
    draft_token_num: int,
    device: torch.device | str,
    *,
    full_v2p: torch.Tensor | None = None,
    swa_v2p: torch.Tensor | None = None,
    full_out: torch.Tensor | None = None,
    swa_out: torch.Tensor | None = None,
    page_size: int = 1,
    positions_out: torch.Tensor | None = None,
    anchor_src: torch.Tensor | None = None,
    anchor_out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Collect ``draft_token_num`` slots per request from ``start_offset`` on.

    Parameters
    ----------
    req_pool_indices, start_offset
        Int ``[batch_size]``.
    req_to_token
        Int ``[rows, width]``.
    batch_size, draft_token_num
        Shape of the window.
    device
        Of the result.
    full_v2p, swa_v2p
        Optional page tables, int ``[pages]``: physical page of each virtual one.
    full_out, swa_out
        Int ``[batch_size * draft_token_num]``; the slots in physical terms are written here.
    page_size
        Tokens per page of the tables.
    positions_out
        Optional int64 ``[batch_size, draft_token_num]``; filled with ``start + column``.
    anchor_src, anchor_out
        Optional ``[batch_size]`` and ``[batch_size, any]``: copied to the first column.

    Returns
    -------
    torch.Tensor
        Int64 ``[batch_size * draft_token_num]``, virtual slots.

    Notes
    -----
    Source: ``kernels.ops.speculative.cache_locs.assign_extend_cache_locs_uniform_func``.
    """
    slots = torch.empty((batch_size, draft_token_num), dtype=torch.int64, device=device)
    _gather_windows(req_pool_indices, req_to_token, start_offset, slots)
    for page_table, physical in ((full_v2p, full_out), (swa_v2p, swa_out)):
        if page_table is not None and physical is not None:
            physical.copy_(_to_physical(slots.view(-1), page_table, page_size))
    if positions_out is not None:
        torch.add(
            start_offset.to(torch.int64).view(-1, 1),
            torch.arange(draft_token_num, device=device),
            out=positions_out.view(batch_size, draft_token_num),
        )
    if anchor_src is not None and anchor_out is not None:
        anchor_out[:, 0] = anchor_src.view(-1)
    return slots.view(-1)


def get_last_loc(
    req_to_token: torch.Tensor,
    req_pool_indices_tensor: torch.Tensor,
    prefix_lens_tensor: torch.Tensor,
) -> torch.Tensor:
    """Return the slot of each request's last cached token, -1 where there is none.

    Parameters
    ----------
    req_to_token
        Int ``[rows, width]``.
    req_pool_indices_tensor, prefix_lens_tensor
        Int ``[batch]``.

    Returns
    -------
    torch.Tensor
        ``[batch]``, the dtype of ``prefix_lens_tensor``.

    Notes
    -----
    Source: ``kernels.ops.memory.common.get_last_loc_triton``, which SGLang takes for every
    attention backend whose name it does not know (page size > 1).
    """
    last = (prefix_lens_tensor.long() - 1).clamp_(min=0)
    slots = req_to_token[req_pool_indices_tensor.long(), last].to(prefix_lens_tensor.dtype)
    return slots.masked_fill_(prefix_lens_tensor <= 0, -1)


def _gather_windows(
    rows: torch.Tensor, req_to_token: torch.Tensor, starts: torch.Tensor, out: torch.Tensor
) -> None:
    """Fill ``out`` ``[batch, width]`` with ``width`` slots per request from ``starts`` on."""
    table, slots, width = req_to_token.numpy(), out.numpy(), out.shape[1]
    for i, (row, start) in enumerate(zip(rows.tolist(), starts.tolist(), strict=True)):
        slots[i] = table[row, start : start + width]


def _to_physical(slots: torch.Tensor, page_table: torch.Tensor, page_size: int) -> torch.Tensor:
    """Translate virtual slots page by page; an unmapped one becomes slot 0, SGLang's sink."""
    pages = torch.div(slots, page_size, rounding_mode="floor")
    known = (slots >= 0) & (pages < page_table.numel())
    physical = page_table[torch.where(known, pages, 0)].to(torch.int64)
    physical = torch.where(known, physical, -1)
    return (physical * page_size + slots % page_size).clamp_(min=0)
