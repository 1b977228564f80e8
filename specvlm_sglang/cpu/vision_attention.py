"""Attention of vision towers on the CPU, block by block over the sequence boundaries.

SGLang's ``sdpa`` vision backend builds a dense patches x patches mask: a long video has 32k patches
and would need 1 GB of bools per call. Patches attend within their own block only, so we walk the
blocks, many of equal length (windows, frames) in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function


def attend_within_blocks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    boundaries: Sequence[int],
    scale: float,
) -> torch.Tensor:
    """Bidirectional attention within consecutive blocks of one flat sequence.

    Parameters
    ----------
    q
        ``[tokens, heads, head_dim]``.
    k, v
        ``[tokens, kv_heads, head_dim]``; consecutive query heads share a KV head.
    boundaries
        Ascending block limits, first 0, last ``tokens``; a repeated value is an empty block.
    scale
        Factor on the scores before the softmax.

    Returns
    -------
    torch.Tensor
        ``[tokens, heads, head_dim]``, the dtype of ``q``.
    """
    tokens = q.shape[0]
    if not boundaries or boundaries[0] != 0 or boundaries[-1] != tokens:
        raise ValueError(
            f"boundaries={list(boundaries)[:4]}... must run from 0 to the {tokens} tokens"
        )
    out = torch.empty_like(q)
    for start, length, count in _equal_runs(boundaries):
        stop = start + length * count
        q_blocks, k_blocks, v_blocks = (
            x[start:stop].reshape(count, length, x.shape[1], x.shape[2]).transpose(1, 2)
            for x in (q, k, v)
        )
        attended = scaled_dot_product_attention(
            q_blocks, k_blocks, v_blocks, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        out[start:stop] = attended.transpose(1, 2).reshape(stop - start, *q.shape[1:])
    return out


def _equal_runs(boundaries: Sequence[int]) -> list[tuple[int, int, int]]:
    """Group consecutive blocks of one length: ``(start, length, count)`` each."""
    runs: list[tuple[int, int, int]] = []
    for start, stop in pairwise(boundaries):
        if start == stop:
            continue
        if runs and runs[-1][1] == stop - start:
            first, length, count = runs[-1]
            runs[-1] = (first, length, count + 1)
        else:
            runs.append((start, stop - start, 1))
    return runs


def install() -> None:
    """Use the blockwise form in SGLang's ``sdpa`` vision backend wherever it means the same."""
    contract.require("vision")

    def make(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def forward(
            self: Any,
            q: torch.Tensor,
            k: torch.Tensor,
            v: torch.Tensor,
            bsz: int,
            cu_seqlens: torch.Tensor | None = None,
            attention_mask: torch.Tensor | None = None,
            **kwargs: Any,
        ) -> torch.Tensor:
            blockwise = (
                q.device.type == "cpu"
                and self.flatten_batch
                and attention_mask is None
                and cu_seqlens is not None
                and not self.softmax_in_single_precision
            )
            if not blockwise or cu_seqlens is None:
                return original(
                    self,
                    q,
                    k,
                    v,
                    bsz,
                    cu_seqlens=cu_seqlens,
                    attention_mask=attention_mask,
                    **kwargs,
                )
            return attend_within_blocks(q, k, v, cu_seqlens.tolist(), self.scale)

        return forward

    replace_function("sglang.srt.layers.attention.vision", "VisionSdpaAttention.forward", make)
