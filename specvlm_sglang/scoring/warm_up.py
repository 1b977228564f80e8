"""Compiles at start what the first video would otherwise wait for."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from specvlm_sglang.pruning.selection import select_video_tokens
from specvlm_sglang.scoring.attention_scores import accumulate_layer_scores

logger = logging.getLogger(__name__)

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


def warm_up(runner: Any, ranks: int) -> None:
    """Score and select once; what goes wrong is logged, and will cost videos their draft.

    Parameters
    ----------
    runner
        SGLang's ``ModelRunner`` of the target, on a GPU.
    ranks
        That share its heads.
    """
    started = time.perf_counter()
    pool = runner.token_to_kv_pool
    try:
        heads = runner.model_config.num_attention_heads // ranks
        compile_kernels(heads, runner.dtype, pool.get_key_buffer(pool.start_layer))
        torch.cuda.synchronize()
    except Exception as error:
        # The first video will fail in the same way, and go without a draft.
        logger.warning("SPECVLM: the scoring kernels do not run here: %s", error)
    else:
        seconds = time.perf_counter() - started
        logger.info("SPECVLM: scoring and selection are compiled, %.1f s", seconds)


def compile_kernels(heads: int, dtype: torch.dtype, key_buffer: torch.Tensor) -> None:
    """Score and select once on ``key_buffer``'s device; arguments as of `layer_arguments`."""
    arguments = layer_arguments(heads, dtype, key_buffer)
    accumulate_layer_scores(*arguments)
    select_video_tokens(arguments[0], retention=0.5, top_p=0.2)
