"""Compiles at start what the first video would otherwise wait for."""

from __future__ import annotations

from typing import Any

import torch

from specvlm_sglang.pruning.selection import select_video_tokens
from specvlm_sglang.scoring.attention_scores import accumulate_layer_scores

LENGTH = 2048
"""More keys than one program of the first pass reads, so that combining parts is compiled too."""
_ROWS, _VIDEO_TOKENS = 2, 16


def layer_arguments(heads: int, dtype: torch.dtype, key_buffer: torch.Tensor) -> tuple[Any, ...]:
    """Arguments of `accumulate_layer_scores` for a prompt that is not there: all in slot 0.

    Kernels are compiled by types and head sizes, not by lengths, so these stand for every prompt.

    Parameters
    ----------
    heads
        Query heads of this rank.
    dtype
        Of the queries.
    key_buffer
        A layer's keys in the pool, ``[slots, kv_heads, head_dim]``; only read.
    """
    device = key_buffer.device
    return (
        torch.zeros(_VIDEO_TOKENS, dtype=torch.float32, device=device),
        torch.zeros((_ROWS, heads, key_buffer.shape[2]), dtype=dtype, device=device),
        key_buffer,
        torch.zeros(LENGTH, dtype=torch.int64, device=device),
        torch.arange(LENGTH - _ROWS, LENGTH, device=device),
        torch.arange(_VIDEO_TOKENS, device=device),
        1.0,
    )


def warm_up(heads: int, dtype: torch.dtype, key_buffer: torch.Tensor) -> None:
    """Score and select once on ``key_buffer``'s device; arguments as of `layer_arguments`."""
    arguments = layer_arguments(heads, dtype, key_buffer)
    accumulate_layer_scores(*arguments)
    select_video_tokens(arguments[0], retention=0.5, top_p=0.2)
