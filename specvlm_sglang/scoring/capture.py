"""Query rows of the language tail, taken from the target's attention while it prefills.

Only the rows' queries are kept (after RoPE, this rank's heads); the keys of every position are in
the target's KV pool once the prefill is over, so the scores can be computed then, whatever was
chunked or came out of the radix cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class LayerFacts:
    """What the scores of one attention layer need besides queries and keys."""

    scaling: float
    logit_cap: float
    key_scale: float


@dataclass
class CapturedRows:
    """Query rows of one request, growing over its prefill chunks.

    Attributes
    ----------
    queries
        Per layer id, chunks ``[rows, heads, head_dim]`` in prompt order.
    """

    queries: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    def rows(self) -> int:
        """Number of rows captured so far (the same in every layer)."""
        for chunks in self.queries.values():
            return sum(chunk.shape[0] for chunk in chunks)
        return 0

    def heads(self) -> int:
        """Query heads of this rank; 0 before anything was captured."""
        for chunks in self.queries.values():
            return chunks[0].shape[1]
        return 0


class QueryCapture:
    """Wraps one attention backend's ``forward_extend`` and keeps the rows it is told to.

    Attributes
    ----------
    layers
        Facts of every scored layer, by layer id, filled by the first prefill.
    skipped_layers
        Ids of sliding-window and cross-attention layers: they do not see the whole prompt.
    """

    def __init__(self) -> None:
        self.layers: dict[int, LayerFacts] = {}
        self.skipped_layers: set[int] = set()
        self._plan: list[tuple[CapturedRows, int, int]] = []

    def watch(self, backend: Any) -> None:
        """Wrap ``backend.forward_extend`` of this instance; `isinstance` checks stay valid.

        Where prefill and decoding have backends of their own, it is prefill's.
        """
        backend = getattr(backend, "prefill_backend", backend)
        original: Callable[..., torch.Tensor] = backend.forward_extend

        def forward_extend(
            q: torch.Tensor,
            k: torch.Tensor,
            v: torch.Tensor,
            layer: Any,
            forward_batch: Any,
            *args: Any,
            **kwargs: Any,
        ) -> torch.Tensor:
            if self._plan:
                self._keep(q, layer)
            return original(q, k, v, layer, forward_batch, *args, **kwargs)

        backend.forward_extend = forward_extend

    def arm(self, plan: list[tuple[CapturedRows, int, int]]) -> None:
        """Keep rows ``start:stop`` of the next forward pass's flat queries for each entry."""
        self._plan = plan

    def disarm(self) -> None:
        """Stop keeping rows."""
        self._plan = []

    def _keep(self, q: torch.Tensor, layer: Any) -> None:
        if layer.sliding_window_size > -1 or layer.is_cross_attention:
            self.skipped_layers.add(layer.layer_id)
            return
        if layer.layer_id not in self.layers:
            self.layers[layer.layer_id] = LayerFacts(
                scaling=layer.scaling,
                logit_cap=layer.logit_cap or 0.0,
                key_scale=layer.k_scale_float if layer.k_scale_float is not None else 1.0,
            )
        rows = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        for captured, start, stop in self._plan:
            chunk = rows[start:stop].clone()
            captured.queries.setdefault(layer.layer_id, []).append(chunk)
