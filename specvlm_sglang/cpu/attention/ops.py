"""Attention of query rows over one set of keys, in torch, with the log-sum-exp for merging.

Two forms that mean the same: torch's flash kernel for CPUs, which accumulates in float32 whatever
the dtype and needs no memory for scores, and plain matrix products for what that kernel lacks (a
logit cap, values of another width than the keys).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

# Scores that the plain form holds at once: 2**24 floats are 64 MB.
_PLAIN_SCORES = 1 << 24

# The overload itself: a call through the packet costs a microsecond more, per layer and request.
_flash: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    logit_cap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention; query heads may be a multiple of the KV heads.

    Parameters
    ----------
    q
        ``[batch, heads, rows, head_dim]``.
    k, v
        ``[batch, kv_heads, keys, head_dim]`` and ``[batch, kv_heads, keys, v_head_dim]``, strided
        as they come as long as the last dimension is dense.
    scale
        Factor on the scores.
    mask
        Additive, ``[batch or 1, 1, rows, keys]``, the dtype of ``q``; every row sees a key.
    causal
        Row ``i`` sees the keys up to ``i``; only with ``rows == keys`` and without ``mask``.
    logit_cap
        Scores become ``logit_cap * tanh(score / logit_cap)`` if positive.

    Returns
    -------
    out : torch.Tensor
        ``[batch, heads, rows, v_head_dim]``, the dtype of ``q``.
    lse : torch.Tensor
        ``[batch, heads, rows]``, float32: the logarithm of each row's softmax denominator.
    """
    if logit_cap <= 0 and k.shape[-1] == v.shape[-1]:
        out, lse = _flash(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)
        return out, lse
    return _attend_plain(q, k, v, scale, mask, causal, logit_cap)


def _attend_plain(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None,
    causal: bool,
    logit_cap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, rows, _ = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    group = heads // kv_heads
    out = q.new_empty(batch, heads, rows, v.shape[-1])
    lse = torch.empty(batch, heads, rows, dtype=torch.float32)
    keys_t = k.float().transpose(-1, -2).unsqueeze(2)
    values = v.float().unsqueeze(2)
    block = max(1, _PLAIN_SCORES // (batch * heads * keys))
    for start in range(0, rows, block):
        stop = min(rows, start + block)
        q_block = q[:, :, start:stop].float().view(batch, kv_heads, group, stop - start, -1)
        scores = (q_block @ keys_t).mul_(scale).view(batch, heads, stop - start, keys)
        if logit_cap > 0:
            scores = scores.div_(logit_cap).tanh_().mul_(logit_cap)
        if mask is not None:
            scores += mask[:, :, start:stop]
        if causal:
            future = torch.ones(stop - start, keys, dtype=torch.bool).triu_(start + 1)
            scores.masked_fill_(future, -torch.inf)
        lse[:, :, start:stop] = scores.logsumexp(-1)
        weights = scores.softmax(-1).view(batch, kv_heads, group, stop - start, keys)
        out[:, :, start:stop] = (weights @ values).view(batch, heads, stop - start, -1)
    return out, lse


def merge(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Attention of one request over the union of disjoint key sets, from that over each.

    Parameters
    ----------
    parts
        Pairs ``(out, lse)`` as `attend` returns them; every entry of their batch dimensions is one
        key set of the same rows.

    Returns
    -------
    torch.Tensor
        ``[1, heads, rows, v_head_dim]``, the dtype of the parts' ``out``.
    """
    outs, lses = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    weighted = outs * lses.softmax(0).unsqueeze(-1)
    return weighted.sum(0, keepdim=True).to(outs.dtype)
