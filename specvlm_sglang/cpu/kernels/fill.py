"""Small fills after a verify pass: bonus tokens and the slots of the accepted path."""

from __future__ import annotations

import torch


def fill_bonus_tokens(
    accept_tokens: torch.Tensor,
    accept_lens: torch.Tensor,
    bonus_tokens: torch.Tensor,
    accept_stride: int,
    batch_size: int,
) -> None:
    """Pick each request's last emitted token.

    Parameters
    ----------
    accept_tokens
        Int ``[batch_size, accept_stride]`` or flat: emitted tokens, padded.
    accept_lens
        Int ``[batch_size]``, at least 1: accept lengths, bonus included.
    bonus_tokens
        Int ``[batch_size]``; written.
    accept_stride, batch_size
        Shape of ``accept_tokens``.

    Notes
    -----
    Source: ``kernels.ops.speculative.eagle.fill_bonus_tokens_func``.
    """
    last = (accept_lens.long() - 1).view(-1, 1)
    bonus_tokens.copy_(accept_tokens.view(batch_size, accept_stride).gather(1, last).view(-1))


def fill_accept_out_cache_loc(
    accept_index: torch.Tensor,
    out_cache_loc: torch.Tensor,
    accept_out_cache_loc: torch.Tensor,
    size: int,
) -> None:
    """Pack the KV slots of all accepted nodes to the front.

    Parameters
    ----------
    accept_index
        Int, ``size`` elements: rows of the verified batch, -1 where there is none.
    out_cache_loc
        Int ``[rows]``: the slot that each row was written to.
    accept_out_cache_loc
        Int ``[size]``; as many as accepted nodes are written, in order.
    size
        Elements of ``accept_index``.

    Notes
    -----
    Source: ``kernels.ops.speculative.eagle.fill_accept_out_cache_loc_func``.
    """
    flat = accept_index.view(-1)[:size]
    slots = out_cache_loc[flat[flat >= 0].long()]
    accept_out_cache_loc[: slots.numel()] = slots


def fill_front_out_cache_loc(
    num_front: torch.Tensor,
    out_cache_loc: torch.Tensor,
    front_out_cache_loc: torch.Tensor,
) -> None:
    """Pack the first ``num_front[i]`` slots of every request's window to the front.

    Parameters
    ----------
    num_front
        Int ``[batch]``.
    out_cache_loc
        Int ``[batch * window]``.
    front_out_cache_loc
        Int, at least ``sum(num_front)`` elements; written.

    Notes
    -----
    Source: ``kernels.ops.speculative.cache_locs.fill_front_out_cache_loc_func``.
    """
    windows = out_cache_loc.view(num_front.numel(), -1)
    columns = torch.arange(windows.shape[1], device=windows.device)
    slots = windows[columns < num_front.view(-1, 1)]
    front_out_cache_loc[: slots.numel()] = slots
