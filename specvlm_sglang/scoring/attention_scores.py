"""Language-to-video attention scores from queries and the target's KV pool.

Call `accumulate_layer_scores` for each layer and `mean_scores` once at the end. The device decides
which implementation runs: `triton_scores` on CUDA, `torch_scores` elsewhere. Both equal
``reference.scoring`` up to float32 rounding, neither holds all rows x keys at once, and neither
waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from specvlm_sglang.scoring import torch_scores

DEFAULT_KEY_BLOCK = 4096


def accumulate_layer_scores(
    total: torch.Tensor,
    queries: torch.Tensor,
    key_buffer: torch.Tensor,
    slots: torch.Tensor,
    query_positions: torch.Tensor,
    video_positions: torch.Tensor,
    scale: float,
    *,
    logit_cap: float | None = None,
    key_scale: float = 1.0,
    key_block: int = DEFAULT_KEY_BLOCK,
) -> None:
    """Add one layer's attention to the video, summed over rows and heads.

    Parameters
    ----------
    total
        float32 ``[N]``, added to.
    queries
        ``[rows, heads, head_dim]`` after RoPE, any float dtype.
    key_buffer
        The layer's keys in the pool, ``[slots, kv_heads, head_dim]``, any float dtype; consecutive
        query heads share a KV head (SGLang's ``KVCache.get_key_buffer``).
    slots
        int64 ``[L]``: the pool slot of each position.
    query_positions
        int64 ``[rows]``, each below L; a row sees keys at positions up to its own.
    video_positions
        int64 ``[N]``, each below L. A row gives nothing to a video token after it.
    scale
        Positive factor on the logits before the softmax.
    logit_cap
        Soft cap ``c`` of the logits, ``c * tanh(logit / c)`` (``RadixAttention.logit_cap``); None
        for none.
    key_scale
        What stored keys must be multiplied by (quantised KV caches, ``RadixAttention.k_scale``).
    key_block
        Keys of one block of the torch version, at least 1: its peak is about
        ``rows * heads * key_block`` floats.

    Raises
    ------
    ValueError
        Shapes that do not fit together, heads that cannot be grouped, or a number out of range.
    """
    _check_shapes(total, queries, key_buffer, query_positions, video_positions)
    for name, value in (("scale", scale), ("logit_cap", logit_cap), ("key_scale", key_scale)):
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name}={value} must be positive and finite")
    if key_block < 1:
        raise ValueError(f"key_block={key_block} must be at least 1")
    if queries.shape[0] == 0 or video_positions.shape[0] == 0:
        return
    tensors = (total, queries, key_buffer, slots, query_positions, video_positions)
    logit_scale = scale * key_scale
    if total.is_cuda:
        # Imported where it is needed: a CPU server never compiles a kernel.
        from specvlm_sglang.scoring import triton_scores

        if triton_scores.supports(queries, key_buffer):
            triton_scores.add_layer_scores(*tensors, logit_scale, logit_cap)
            return
    torch_scores.add_layer_scores(*tensors, logit_scale, logit_cap, key_block)


def mean_scores(
    total: torch.Tensor,
    *,
    layers: int,
    rows: int,
    heads: int,
    all_reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Turn what `accumulate_layer_scores` summed into scores: the mean over layers, heads and rows.

    Parameters
    ----------
    total
        float32 ``[N]``: this rank's sums.
    layers, rows
        Layers and query rows that were added. Without any the scores are 0, for which the selection
        defines a fallback.
    heads
        Query heads of a layer over ALL tensor-parallel ranks.
    all_reduce
        Sums a tensor over the ranks that share the query heads and returns the sum (SGLang's
        ``GroupCoordinator.all_reduce``); None where one rank has all the heads.

    Returns
    -------
    float32 ``[N]``, at most 1 in total.

    Raises
    ------
    ValueError
        A negative number of layers, rows or heads.
    """
    for name, count in (("layers", layers), ("rows", rows), ("heads", heads)):
        if count < 0:
            raise ValueError(f"{name}={count} must be at least 0")
    if all_reduce is not None:
        total = all_reduce(total)
    return total / max(layers * rows * heads, 1)


def _check_shapes(
    total: torch.Tensor,
    queries: torch.Tensor,
    key_buffer: torch.Tensor,
    query_positions: torch.Tensor,
    video_positions: torch.Tensor,
) -> None:
    if key_buffer.dim() != 3:
        raise ValueError(
            f"key_buffer of shape {list(key_buffer.shape)} must be [slots, kv_heads, head_dim]; "
            "other layouts of the KV cache (SGLANG_USE_HND_KVCACHE) are not supported"
        )
    rows, heads, head_dim = queries.shape
    _, kv_heads, key_dim = key_buffer.shape
    if heads < 1 or heads % kv_heads:
        raise ValueError(f"queries have {heads} heads, not a multiple of the {kv_heads} KV heads")
    if head_dim != key_dim:
        raise ValueError(f"queries have head_dim {head_dim}, key_buffer has {key_dim}")
    if query_positions.shape != (rows,):
        raise ValueError(
            f"query_positions of shape {list(query_positions.shape)} must have one entry for each "
            f"of the {rows} rows of queries"
        )
    if total.dtype != torch.float32 or total.shape != video_positions.shape:
        raise ValueError(
            f"total is {total.dtype} of shape {list(total.shape)}, must be float32 of the shape of "
            f"video_positions, {list(video_positions.shape)}"
        )
