"""One layer's attention to the video on a GPU: two passes over the paged keys, in Triton.

The first pass finds each row's log-sum-exp over all the keys that it sees. It is split over the
keys, so that few rows over a long video still fill the device; the parts are combined afterwards.
In the second pass each program owns a block of video tokens and a KV head, reads those keys once
and adds up their probabilities over all rows.

Nothing is added atomically and no size depends on the device, so equal inputs give equal bits
wherever the slots lie. Rows x keys exist one tile at a time, in registers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from specvlm_sglang.scoring.triton_kernels import column_sums, combine_splits, row_log_sums

KEYS_PER_SPLIT = 1024
"""Keys of one program of the first pass. Fixed: the split decides the order of summation."""

COMBINE_BLOCK = 128
"""Rows of one program that combines the splits."""

MAX_HEAD_DIM = 256
"""Beyond this one tile of keys does not fit the shared memory of every device."""

KEY_FORMATS = {
    torch.float32: "native",
    torch.bfloat16: "native",
    torch.float16: "native",
    torch.float8_e4m3fn: "e4m3",
    torch.float8_e5m2: "e5m2",
}
"""How the kernels read keys of each dtype."""


@dataclass(frozen=True)
class Tile:
    """Shape of a program: query rows (of all heads of a KV group) x keys, warps, pipeline depth."""

    rows: int
    keys: int
    warps: int
    stages: int


def default_tile(dot_dtype: tl.dtype, head_dim: int, key_format: str) -> Tile:
    """Return the tile for products in ``dot_dtype`` over ``head_dim``, measured not to spill.

    ``key_format`` is one of `KEY_FORMATS`.
    """
    if dot_dtype == tl.float32:
        # No tensor cores: operands live in registers, and half as many warps spill on sm_120.
        return Tile(rows=16, keys=32, warps=8, stages=1)
    if head_dim > 128 and key_format != "native":
        # Keys are widened in registers: on sm_120 no room is left for 64 rows.
        return Tile(rows=32, keys=64, warps=4, stages=2)
    if head_dim > 128:
        return Tile(rows=64, keys=32, warps=4, stages=2)
    return Tile(rows=64, keys=64, warps=4, stages=2)


def supports(queries: torch.Tensor, key_buffer: torch.Tensor) -> bool:
    """Whether the kernels take these dtypes and this ``head_dim``."""
    return (
        queries.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and key_buffer.dtype in KEY_FORMATS
        and queries.shape[-1] <= MAX_HEAD_DIM
    )


def add_layer_scores(
    total: torch.Tensor,
    queries: torch.Tensor,
    key_buffer: torch.Tensor,
    slots: torch.Tensor,
    query_positions: torch.Tensor,
    video_positions: torch.Tensor,
    scale: float,
    logit_cap: float | None,
) -> None:
    """Add to ``total``; arguments are those of `attention_scores.accumulate_layer_scores`.

    ``scale`` includes the scale of the keys, there is at least one row and one video token, and
    `supports` holds. Needs ``rows * heads * (L / KEYS_PER_SPLIT + 1) + kv_heads * N`` floats of
    memory. Lengths are run-time arguments: a new prompt compiles nothing.
    """
    rows, heads, head_dim = queries.shape
    kv_heads = key_buffer.shape[1]
    length, video_tokens = slots.shape[0], video_positions.shape[0]
    group = heads // kv_heads
    dot_dtype = dot_dtype_of(queries, key_buffer)
    key_format = KEY_FORMATS[key_buffer.dtype]
    tile = default_tile(dot_dtype, head_dim, key_format)
    if key_format != "native":
        key_buffer = key_buffer.view(torch.uint8)
    slots, query_positions = slots.contiguous(), query_positions.contiguous()
    inner, outer = logit_factors(scale, logit_cap)
    shared: tuple[Any, ...] = (
        queries,
        key_buffer,
        slots,
        query_positions,
        inner,
        outer,
        rows,
        *queries.stride(),
        *key_buffer.stride(),
    )
    constants = {
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded_head_dim(head_dim),
        "KEY_FORMAT": key_format,
        "DOT_DTYPE": dot_dtype,
        "HAS_CAP": logit_cap is not None,
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.keys,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
    # CUDA allows 2**31 - 1 programs along a grid's first axis and 65535 along the others: lengths
    # would have to pass 67 million keys before the second axis ends.
    splits = triton.cdiv(length, KEYS_PER_SPLIT)
    log_sums = total.new_empty(splits, kv_heads, rows * group)
    row_log_sums[(triton.cdiv(rows * group, tile.rows), splits, kv_heads)](
        log_sums, *shared, length, KEYS_PER_SPLIT=KEYS_PER_SPLIT, **constants
    )
    if splits > 1:
        parts, log_sums = log_sums, total.new_empty(kv_heads, rows * group)
        combine_splits[(triton.cdiv(log_sums.numel(), COMBINE_BLOCK),)](
            log_sums, parts, log_sums.numel(), splits, BLOCK=COMBINE_BLOCK
        )
    sums = total.new_empty(kv_heads, video_tokens)
    column_sums[(triton.cdiv(video_tokens, tile.keys), kv_heads)](
        sums, *shared, video_positions.contiguous(), log_sums, video_tokens, **constants
    )
    total += sums.sum(dim=0)


def padded_head_dim(head_dim: int) -> int:
    """Next power of two, at least the 16 that ``tl.dot`` needs."""
    return max(16, int(triton.next_power_of_2(head_dim)))


def dot_dtype_of(queries: torch.Tensor, key_buffer: torch.Tensor) -> tl.dtype:
    """Return a dtype that holds queries and keys exactly: 16 bits where both fit, else float32.

    Both FP8 formats fit float16 and bfloat16.
    """
    same = queries.dtype == key_buffer.dtype or KEY_FORMATS[key_buffer.dtype] != "native"
    if same and queries.dtype == torch.float16:
        return tl.float16
    # Triton's interpreter takes bfloat16 operands for integers.
    if same and queries.dtype == torch.bfloat16 and not triton.knobs.runtime.interpret:
        return tl.bfloat16
    return tl.float32


def logit_factors(scale: float, logit_cap: float | None) -> tuple[float, float]:
    """Return factors with which ``outer * tanh(inner * product)`` is a logit in units of ln 2.

    Without a cap it is ``outer * product`` and ``inner`` is not used.
    """
    if logit_cap is None:
        return 1.0, scale / math.log(2)
    return scale / logit_cap, logit_cap / math.log(2)
