"""One layer's attention to the video in torch: the simple sibling of `triton_scores`.

What CPU serving uses. Never holds more than one block of rows x keys, and never waits for the
device.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch


def add_layer_scores(
    total: torch.Tensor,
    queries: torch.Tensor,
    key_buffer: torch.Tensor,
    slots: torch.Tensor,
    query_positions: torch.Tensor,
    video_positions: torch.Tensor,
    scale: float,
    logit_cap: float | None,
    key_block: int,
) -> None:
    """Add to ``total``; arguments are those of `attention_scores.accumulate_layer_scores`.

    ``scale`` includes the scale of the keys, and there is at least one row and one video token.
    A prompt of at most ``key_block`` tokens takes one pass. A longer one takes two: the first finds
    each row's log-sum-exp over all the keys that it sees, the second reads the video's keys again.
    """
    length = slots.shape[0]
    layer = _Layer(queries, key_buffer, slots, query_positions, scale, logit_cap)
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
