"""Scores that grow while the target prefills: no queries are stored.

A layer's keys are in the target's KV pool as soon as its attention is computed, those of earlier
chunks and of the radix cache included, and every video token comes before the query rows. So each
pass's rows are scored right behind the layer that they are taken from. What goes wrong costs the
request its scores, never the target's pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from specvlm_sglang.scoring.attention_scores import accumulate_layer_scores


@dataclass
class RunningScores:
    """One request's sums so far, over the passes of its prefill.

    Attributes
    ----------
    total
        This rank's attention to each video token, summed over rows, heads and layers: float32
        ``[N]`` on the device; None before the first rows.
    rows
        Query rows that were added (the same in every layer).
    layers
        Ids of the layers that were added.
    heads
        Query heads of this rank; 0 before the first rows.
    seconds
        What the sums took (on a GPU: their launches).
    failure
        What went wrong; then the sums mean nothing.
    kinds
        What is summed, of `specvlm_sglang.policies.ATTENTION`; fixed before the first rows.
    by_layer
        With "layer_scores": ``total`` of each layer alone, by its id; ``total`` itself stays 0.
    last_row
        With "last_row_scores": the attention of the last query row, as ``total``.
    """

    total: torch.Tensor | None = None
    rows: int = 0
    layers: set[int] = field(default_factory=set)
    heads: int = 0
    seconds: float = 0.0
    failure: Exception | None = None
    kinds: frozenset[str] = frozenset({"scores"})
    by_layer: dict[int, torch.Tensor] = field(default_factory=dict)
    last_row: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class RowsOfPass:
    """Query rows of one request in one forward pass.

    Attributes
    ----------
    scores
        What they are added to.
    start, stop
        Their place in the pass.
    slots
        int64 ``[L]`` on the device: the pool slot of each position up to the last of these rows.
    query_positions, video_positions
        int64 ``[stop - start]`` and ``[N]`` on the device.
    has_last
        Whether the last of these rows is the prompt's last.
    """

    scores: RunningScores
    start: int
    stop: int
    slots: torch.Tensor
    query_positions: torch.Tensor
    video_positions: torch.Tensor
    has_last: bool = False

    def add(self, queries: torch.Tensor, keys: torch.Tensor, layer: Any) -> None:
        """Add one layer: its queries ``[tokens, heads, head_dim]`` and its keys in the pool."""
        scores, started = self.scores, time.perf_counter()
        if scores.total is None:
            scores.total = self._nothing(queries)
        total = scores.total
        if "layer_scores" in scores.kinds:
            total = scores.by_layer.setdefault(layer.layer_id, self._nothing(queries))
        self._accumulate(total, queries, keys, layer, self.start)
        if "last_row_scores" in scores.kinds and self.has_last:
            if scores.last_row is None:
                scores.last_row = self._nothing(queries)
            self._accumulate(scores.last_row, queries, keys, layer, self.stop - 1)
        scores.layers.add(layer.layer_id)
        scores.heads = queries.shape[1]
        scores.seconds += time.perf_counter() - started

    def _nothing(self, queries: torch.Tensor) -> torch.Tensor:
        size = self.video_positions.shape
        return torch.zeros(size, dtype=torch.float32, device=queries.device)

    def _accumulate(
        self, total: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor, layer: Any, start: int
    ) -> None:
        """Add the rows of the pass from ``start`` on to ``total``."""
        accumulate_layer_scores(
            total,
            # A view of what the model will write over, and perhaps of keys and values too.
            queries[start : self.stop].contiguous(),
            keys,
            self.slots,
            self.query_positions[start - self.start :],
            self.video_positions,
            layer.scaling,
            logit_cap=layer.logit_cap or None,
            key_scale=layer.k_scale_float if layer.k_scale_float is not None else 1.0,
        )


class RunningScorer:
    """Wraps one attention backend's ``forward_extend`` and scores the rows that it is told to.

    Parameters
    ----------
    keys_of
        Maps a layer's id to its keys in the target's pool, ``[slots, kv_heads, head_dim]``.
    timed
        Context in which scoring is computed.

    Attributes
    ----------
    skipped_layers
        Ids of sliding-window and cross-attention layers, which do not see the whole prompt, and of
        those with attention sinks, whose softmax has a term that is no key.
    """

    def __init__(
        self,
        keys_of: Callable[[int], torch.Tensor],
        timed: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.skipped_layers: set[int] = set()
        self._keys_of = keys_of
        self._timed = timed
        self._plan: Sequence[RowsOfPass] = ()

    def watch(self, backend: Any) -> None:
        """Wrap ``backend.forward_extend`` of this instance; `isinstance` checks stay valid.

        Where prefill and decoding have backends of their own, it is prefill's.
        """
        prefill = getattr(backend, "prefill_backend", None)
        # FlashInfer's backend has an attribute of this name too, a string.
        backend = prefill if hasattr(prefill, "forward_extend") else backend
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
            attended = original(q, k, v, layer, forward_batch, *args, **kwargs)
            if self._plan:
                self._add(q, layer, has_sinks=kwargs.get("sinks") is not None)
            return attended

        backend.forward_extend = forward_extend

    def arm(self, plan: Sequence[RowsOfPass]) -> None:
        """Score these rows in the next forward pass."""
        self._plan = plan

    def disarm(self) -> None:
        """The pass is over."""
        for rows in self._plan:
            if rows.scores.layers:
                rows.scores.rows += rows.stop - rows.start
        self._plan = ()

    def _add(self, q: torch.Tensor, layer: Any, *, has_sinks: bool = False) -> None:
        if layer.sliding_window_size > -1 or layer.is_cross_attention or has_sinks:
            self.skipped_layers.add(layer.layer_id)
            return
        with self._timed():
            for rows in self._plan:
                if rows.scores.failure is not None:
                    continue
                try:
                    queries = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
                    rows.add(queries, self._keys_of(layer.layer_id), layer)
                except Exception as error:
                    # Its frames hold tensors of the pass.
                    rows.scores.failure = error.with_traceback(None)
