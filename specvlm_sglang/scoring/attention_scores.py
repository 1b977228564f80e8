"""Language-to-video attention scores from captured queries and the target's KV pool, in torch.

Call `accumulate_layer_scores` for each layer and `mean_scores` once at the end. The simple sibling
of a GPU kernel, and the form that CPU serving uses. Equal to ``reference.scoring`` up to float32
rounding; never holds more than one block of rows x keys, and never waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

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

    A prompt of at most ``key_block`` tokens takes one pass. A longer one takes two: the first finds
    each row's log-sum-exp over all the keys that it sees, the second reads the video's keys again.

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
        Keys of one block, at least 1: the peak is about ``rows * heads * key_block`` floats.

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
    rows, length = queries.shape[0], slots.shape[0]
    if rows == 0 or video_positions.shape[0] == 0:
        return
    layer = _Layer(queries, key_buffer, slots, query_positions, scale * key_scale, logit_cap)
    if length <= key_block:
        weights = layer.logits(torch.arange(length, device=slots.device))
        weights = weights.sub_(weights.amax(dim=-1, keepdim=True)).exp_()
        weights /= weights.sum(dim=-1, keepdim=True)
        total += weights.sum(dim=(0, 1, 2))[video_positions]
        return
    log_sums = _row_log_sums(layer, length, key_block)
    for first, stop in _blocks(video_positions.shape[0], key_block):
        logits = layer.logits(video_positions[first:stop])
        total[first:stop] += logits.sub_(log_sums).exp_().sum(dim=(0, 1, 2))


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


class _Layer:
    """One layer's queries beside its paged keys, and the logits of any of its positions."""

    def __init__(
        self,
        queries: torch.Tensor,
        key_buffer: torch.Tensor,
        slots: torch.Tensor,
        query_positions: torch.Tensor,
        scale: float,
        logit_cap: float | None,
    ) -> None:
        self.rows, heads, head_dim = queries.shape
        self.kv_heads = key_buffer.shape[1]
        self.group = heads // self.kv_heads
        # The heads of a KV group become rows, so that keys are never expanded.
        grouped = queries.float().view(self.rows, self.kv_heads, self.group, head_dim)
        self.queries = grouped.permute(1, 2, 0, 3).reshape(self.kv_heads, -1, head_dim)
        self.key_buffer = key_buffer
        self.slots = slots
        self.row_positions = query_positions[:, None]
        self.scale = scale
        self.logit_cap = logit_cap

    def logits(self, positions: torch.Tensor) -> torch.Tensor:
        """Return float32 ``[kv_heads, group, rows, keys]``, -inf where a row does not see a key."""
        keys = self.key_buffer[self.slots[positions]].float().permute(1, 2, 0)
        # Scaled on the way out: scaled queries would lose bits where products are in TF32.
        logits = torch.baddbmm(keys.new_zeros(1), self.queries, keys, beta=0, alpha=self.scale)
        if self.logit_cap is not None:
            logits.div_(self.logit_cap).tanh_().mul_(self.logit_cap)
        logits = logits.view(self.kv_heads, self.group, self.rows, -1)
        return logits.masked_fill_(positions > self.row_positions, -torch.inf)


def _row_log_sums(layer: _Layer, length: int, key_block: int) -> torch.Tensor:
    """Log-sum-exp of each row over the keys it sees: ``[kv_heads, group, rows, 1]``."""
    shape = (layer.kv_heads, layer.group, layer.rows, 1)
    maxima = layer.queries.new_full(shape, -torch.inf)
    sums = layer.queries.new_zeros(shape)
    for first, stop in _blocks(length, key_block):
        logits = layer.logits(torch.arange(first, stop, device=layer.slots.device))
        # Every row sees key 0, so from the first block on this is finite.
        larger = torch.maximum(maxima, logits.amax(dim=-1, keepdim=True))
        sums = sums * (maxima - larger).exp_() + logits.sub_(larger).exp_().sum(-1, keepdim=True)
        maxima = larger
    return maxima + sums.log()


def _blocks(size: int, block: int) -> Iterator[tuple[int, int]]:
    for first in range(0, size, block):
        yield first, min(first + block, size)


def _check_shapes(
    total: torch.Tensor,
    queries: torch.Tensor,
    key_buffer: torch.Tensor,
    query_positions: torch.Tensor,
    video_positions: torch.Tensor,
) -> None:
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
