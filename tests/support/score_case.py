"""Inputs of one layer's scores: queries, keys scattered over a pool, positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reference.scoring import language_to_video_scores


@dataclass(frozen=True)
class ScoreCase:
    """Sizes and dtypes; everything else is drawn from ``seed``.

    Attributes
    ----------
    length, rows
        Tokens of the prompt; its last ``rows`` are query rows.
    key_dtype
        None for that of the queries.
    video
        ``(first, stop)`` of the video's tokens; by default every second token before the rows.
    """

    length: int = 61
    rows: int = 5
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    dtype: torch.dtype = torch.float32
    key_dtype: torch.dtype | None = None
    logit_cap: float | None = None
    key_scale: float = 1.0
    video: tuple[int, int] | None = None
    spread: float = 2.0
    seed: int = 0

    @property
    def scale(self) -> float:
        """The usual factor on the logits."""
        return float(self.head_dim**-0.5)

    def positions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions of the query rows and of the video tokens."""
        rows = torch.arange(self.length - self.rows, self.length)
        if self.video is not None:
            return rows, torch.arange(*self.video)
        return rows, torch.arange(0, max(self.length - self.rows, 1), 2)

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries ``[rows, heads, head_dim]`` and keys ``[length, kv_heads, head_dim]``."""
        generator = torch.Generator().manual_seed(self.seed)
        queries = torch.randn(self.rows, self.heads, self.head_dim, generator=generator)
        keys = torch.randn(self.length, self.kv_heads, self.head_dim, generator=generator)
        return (self.spread * queries).to(self.dtype), keys.to(self.key_dtype or self.dtype)

    def arguments(self, slot_seed: int = 0) -> tuple[Any, ...]:
        """Arguments of a backend's ``add_layer_scores``; the first is the total, zeros.

        ``slot_seed`` decides where the keys lie, not what they are.
        """
        queries, keys = self.vectors()
        rows, video = self.positions()
        pool, slots = scattered(keys, slot_seed)
        scale = self.scale * self.key_scale
        return torch.zeros(video.numel()), queries, pool, slots, rows, video, scale, self.logit_cap

    def shapes(self) -> tuple[Any, ...]:
        """`arguments` without values, as meta tensors."""
        rows, video = (torch.empty_like(t, device="meta") for t in self.positions())
        dtype, head_dim = self.key_dtype or self.dtype, self.head_dim
        with torch.device("meta"):
            return (
                torch.empty(video.numel()),
                torch.empty(self.rows, self.heads, head_dim, dtype=self.dtype),
                torch.empty(3 * self.length, self.kv_heads, head_dim, dtype=dtype),
                torch.empty(self.length, dtype=torch.int64),
                rows,
                video,
                self.scale * self.key_scale,
                self.logit_cap,
            )

    def expected(self) -> np.ndarray:
        """The reference's scores."""
        queries, keys = self.vectors()
        rows, video = self.positions()
        return language_to_video_scores(
            queries[None].float().numpy(),
            self.key_scale * keys[None].float().numpy(),
            query_positions=rows.numpy(),
            video_positions=video.numpy(),
            scale=self.scale,
            logit_cap=self.logit_cap,
        )


def scattered(keys: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scatter ``[positions, kv_heads, head_dim]`` over a larger pool, NaN everywhere else."""
    length = keys.shape[0]
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randperm(3 * length, generator=generator)[:length]
    pool = torch.full((3 * length, *keys.shape[1:]), torch.nan).to(keys.dtype)
    pool[slots] = keys
    return pool, slots
