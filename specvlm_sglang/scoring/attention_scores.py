"""Language-to-video attention scores from captured queries and the target's KV pool, in torch.

The simple sibling of a GPU kernel, and the form that CPU serving uses. Equal to
``reference.scoring`` up to float32 rounding; never holds more than one block of rows x keys.
"""

from __future__ import annotations

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

    Parameters
    ----------
    total
        float32 ``[N]``, added to.
    queries
        ``[rows, heads, head_dim]`` after RoPE, any float dtype.
    key_buffer
        The layer's keys in the pool, ``[slots, kv_heads, head_dim]``; consecutive query heads
        share a KV head.
    slots
        int64 ``[L]``: the pool slot of each position.
    query_positions
        int64 ``[rows]``, each below L; a row sees keys at positions up to its own.
    video_positions
        int64 ``[N]``, ascending.
    scale
        Factor on the scores before the softmax.
    logit_cap
        Soft cap ``c`` of the scores, ``c * tanh(score / c)``; None for none.
    key_scale
        What stored keys must be multiplied by (quantised KV caches).
    key_block
        Keys of one block: the peak is ``rows * heads * key_block`` floats.
    """
    rows, heads, head_dim = queries.shape
    kv_heads = key_buffer.shape[1]
    if heads % kv_heads:
        raise ValueError(f"queries have {heads} heads, not a multiple of the {kv_heads} KV heads")
    # Heads of a KV group become rows, so that every key is read once.
    grouped = queries.float().view(rows, kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    grouped = grouped.reshape(kv_heads, -1, head_dim) * (scale * key_scale)
    row_positions = query_positions.repeat(heads // kv_heads)

    def logits(first: int, stop: int) -> torch.Tensor:
        keys = key_buffer[slots[first:stop]].float()
        scores = grouped @ keys.permute(1, 2, 0)
        if logit_cap is not None:
            scores = logit_cap * torch.tanh(scores / logit_cap)
        hidden = torch.arange(first, stop, device=slots.device) > row_positions[:, None]
        return scores.masked_fill_(hidden, -torch.inf)

    length = slots.shape[0]
    blocks = [(first, min(first + key_block, length)) for first in range(0, length, key_block)]
    column_sums = torch.zeros(length, dtype=torch.float32, device=total.device)
    if len(blocks) == 1:
        column_sums += logits(0, length).softmax(dim=-1).sum(dim=(0, 1))
    else:
        log_mass = torch.full(grouped.shape[:2], -torch.inf, device=total.device)
        for first, stop in blocks:
            log_mass = torch.logaddexp(log_mass, logits(first, stop).logsumexp(dim=-1))
        for first, stop in blocks:
            shares = (logits(first, stop) - log_mass[..., None]).exp_()
            column_sums[first:stop] = shares.sum(dim=(0, 1))
    total += column_sums[video_positions]
