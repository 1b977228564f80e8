"""A KV pool with more than 2**31 elements, made where the kernels run: it is too large to send."""

from __future__ import annotations

import torch

from specvlm_sglang.scoring import triton_scores


def add_layer_scores(
    total: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    slots: torch.Tensor,
    query_positions: torch.Tensor,
    video_positions: torch.Tensor,
    scale: float,
    logit_cap: float | None,
) -> None:
    """Put ``keys`` at ``slots`` of a pool that just holds them, then score them there."""
    pool = torch.empty(int(slots.max()) + 1, *keys.shape[1:], dtype=torch.uint8)
    pool[slots] = keys.view(torch.uint8)
    triton_scores.add_layer_scores(
        total,
        queries,
        pool.view(keys.dtype),
        slots,
        query_positions,
        video_positions,
        scale,
        logit_cap,
    )
