"""The kernels that `triton_scores` launches.

Logits are in units of ln 2 from the start, for ``exp2`` is what the hardware has.
"""

# Triton reads the kernels' annotations: those of Python are not for it.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _logits(queries, keys, inner, outer, HAS_CAP: tl.constexpr):
    """float32 logits of a tile, in units of ln 2."""
    logits = tl.dot(queries, keys, input_precision="ieee")
    if HAS_CAP:
        # Triton's own tanh is missing in its interpreter. This one cannot overflow.
        shrunk = tl.exp(-2.0 * tl.abs(inner * logits))
        magnitude = (1.0 - shrunk) / (1.0 + shrunk)
        logits = tl.where(logits < 0, -magnitude, magnitude)
    return logits * outer


@triton.jit
def _load_queries(
    queries,
    kv_head,
    m,
    is_row,
    stride_row,
    stride_head,
    stride_dim,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
):
    """[BLOCK_M, BLOCK_D]: the heads of a KV group are rows, so that keys are never expanded."""
    d = tl.arange(0, BLOCK_D)
    row, head = m // GROUP, kv_head * GROUP + m % GROUP
    at = row.to(tl.int64) * stride_row + head * stride_head
    mask = is_row[:, None] & (d < HEAD_DIM)[None, :]
    tile = tl.load(queries + at[:, None] + d[None, :] * stride_dim, mask=mask, other=0.0)
    return tile.to(DOT_DTYPE)


@triton.jit
def _load_keys(
    keys,
    kv_head,
    slot,
    is_key,
    stride_slot,
    stride_head,
    stride_dim,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEY_FORMAT: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
):
    """[BLOCK_D, BLOCK_N] out of the pool; FP8 comes as bytes."""
    d = tl.arange(0, BLOCK_D)
    # A pool may hold more than 2**31 elements.
    at = slot.to(tl.int64) * stride_slot + kv_head.to(tl.int64) * stride_head
    mask = (d < HEAD_DIM)[:, None] & is_key[None, :]
    tile = tl.load(keys + d[:, None] * stride_dim + at[None, :], mask=mask, other=0)
    # Widened by hand: Triton has no e4m3 before sm_89. Both formats are exact in float16.
    if KEY_FORMAT == "e4m3":
        bits = tile.to(tl.uint16)
        half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True)
        # The exponent's bias is 7 in e4m3 and 15 in float16.
        tile = tl.where((bits & 0x7F) == 0x7F, float("nan"), half * 256.0)
    elif KEY_FORMAT == "e5m2":
        tile = (tile.to(tl.uint16) << 8).to(tl.float16, bitcast=True)
    return tile.to(DOT_DTYPE)


@triton.jit(do_not_specialize=["rows", "length"])
def row_log_sums(
    out,
    queries,
    keys,
    slots,
    query_positions,
    inner,
    outer,
    rows,
    stride_row,
    stride_head,
    stride_dim,
    stride_slot,
    stride_key_head,
    stride_key_dim,
    length,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEY_FORMAT: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    HAS_CAP: tl.constexpr,
    KEYS_PER_SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """First pass: base-2 log-sum-exp of each row over the keys of one split that it sees.

    Writes float32 ``out[split, kv_head, row * GROUP + head]``, -inf where a row sees none of them.
    """
    tile, split, kv_head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = m < rows * GROUP
    position = tl.load(query_positions + m // GROUP, mask=is_row, other=0)
    q = _load_queries(
        queries,
        kv_head,
        m,
        is_row,
        stride_row,
        stride_head,
        stride_dim,
        GROUP,
        HEAD_DIM,
        BLOCK_D,
        DOT_DTYPE,
    )
    maxima = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sums = tl.zeros([BLOCK_M], tl.float32)
    first = split * KEYS_PER_SPLIT
    for start in range(first, tl.minimum(first + KEYS_PER_SPLIT, length), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        is_key = n < length
        slot = tl.load(slots + n, mask=is_key, other=0)
        k = _load_keys(
            keys,
            kv_head,
            slot,
            is_key,
            stride_slot,
            stride_key_head,
            stride_key_dim,
            HEAD_DIM,
            BLOCK_D,
            KEY_FORMAT,
            DOT_DTYPE,
        )
        logits = _logits(q, k, inner, outer, HAS_CAP)
        # Every row stands below the length, so this hides what lies beyond it too.
        logits = tl.where(n[None, :] <= position[:, None], logits, float("-inf"))
        larger = tl.maximum(maxima, tl.max(logits, axis=1))
        # A row may see nothing of this split yet; -inf less -inf would be NaN.
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        sums = sums * tl.exp2(maxima - shift) + tl.sum(tl.exp2(logits - shift[:, None]), axis=1)
        maxima = larger
    at = (split * tl.num_programs(2) + kv_head).to(tl.int64) * (rows * GROUP) + m
    tl.store(out + at, maxima + tl.log2(sums), mask=is_row)


@triton.jit(do_not_specialize=["count", "splits"])
def combine_splits(out, parts, count, splits, BLOCK: tl.constexpr):
    """Base-2 log-sum-exp over the first axis of ``parts`` [splits, count] into ``out`` [count]."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = row < count
    at = row.to(tl.int64)
    maxima = tl.full([BLOCK], float("-inf"), tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for _ in range(splits):
        part = tl.load(parts + at, mask=is_row, other=0.0)
        # Finite from the first split on: every row sees key 0.
        larger = tl.maximum(maxima, part)
        sums = sums * tl.exp2(maxima - larger) + tl.exp2(part - larger)
        maxima = larger
        at += count
    tl.store(out + row, maxima + tl.log2(sums), mask=is_row)


@triton.jit(do_not_specialize=["rows", "video_tokens"])
def column_sums(
    out,
    queries,
    keys,
    slots,
    query_positions,
    inner,
    outer,
    rows,
    stride_row,
    stride_head,
    stride_dim,
    stride_slot,
    stride_key_head,
    stride_key_dim,
    video_positions,
    log_sums,
    video_tokens,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEY_FORMAT: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Second pass: probability of each video token, summed over the rows of one KV group.

    Reads base-2 ``log_sums`` [kv_heads, rows * GROUP], writes float32 ``out[kv_head, token]``.
    """
    block, kv_head = tl.program_id(0), tl.program_id(1)
    token = block * BLOCK_N + tl.arange(0, BLOCK_N)
    is_token = token < video_tokens
    n = tl.load(video_positions + token, mask=is_token, other=0)
    slot = tl.load(slots + n, mask=is_token, other=0)
    k = _load_keys(
        keys,
        kv_head,
        slot,
        is_token,
        stride_slot,
        stride_key_head,
        stride_key_dim,
        HEAD_DIM,
        BLOCK_D,
        KEY_FORMAT,
        DOT_DTYPE,
    )
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, rows * GROUP, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        is_row = m < rows * GROUP
        # Rows beyond the last stand before every token and see none.
        position = tl.load(query_positions + m // GROUP, mask=is_row, other=-1)
        log_sum = tl.load(log_sums + kv_head * (rows * GROUP) + m, mask=is_row, other=0.0)
        q = _load_queries(
            queries,
            kv_head,
            m,
            is_row,
            stride_row,
            stride_head,
            stride_dim,
            GROUP,
            HEAD_DIM,
            BLOCK_D,
            DOT_DTYPE,
        )
        logits = _logits(q, k, inner, outer, HAS_CAP)
        logits = tl.where(n[None, :] <= position[:, None], logits, float("-inf"))
        sums += tl.exp2(logits - log_sum[:, None])
    at = kv_head.to(tl.int64) * video_tokens + token
    tl.store(out + at, tl.sum(sums, axis=0), mask=is_token)
