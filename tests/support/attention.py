"""A KV pool, a request table and an attention layer of SGLang, with a dense oracle beside them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Largest absolute error against the float64 oracle, for normal queries, keys and values."""
TYPES_AND_HEADS = [
    *((torch.float32, heads, kv_heads) for heads, kv_heads in ((2, 2), (4, 1), (6, 2))),
    (torch.bfloat16, 6, 2),
    (torch.float16, 6, 2),
]
"""Every shape in float32, and every type with the one that shares and has several KV heads."""


class AttentionRig:
    """Requests with cached tokens in a real pool.

    Parameters
    ----------
    cached
        Tokens that each request has in the pool.
    room
        Slots beyond them that each request owns, as SGLang over-allocates for drafts.
    longest_run
        Pages of one request that may follow each other; 0: all of them, without a gap.
    layers
        Layers of the pool; ``layer`` is the first.
    """

    def __init__(
        self,
        cached: Sequence[int],
        room: int,
        *,
        dtype: torch.dtype = torch.float32,
        heads: int = 4,
        kv_heads: int = 2,
        head_dim: int = 16,
        v_head_dim: int | None = None,
        page_size: int = 1,
        longest_run: int = 1,
        window: int = -1,
        logit_cap: float = 0.0,
        attn_type: AttentionType = AttentionType.DECODER,
        layers: int = 1,
        seed: int = 0,
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype, self.window = dtype, window
        self.cached = list(cached)
        self.layer = RadixAttention(
            heads,
            head_dim,
            head_dim**-0.5,
            kv_heads,
            layer_id=0,
            logit_cap=logit_cap,
            v_head_dim=-1 if v_head_dim is None else v_head_dim,
            sliding_window_size=window,
            attn_type=attn_type,
        )
        width = max(self.cached) + room
        pages_each = -(-width // page_size)
        pages = len(self.cached) * pages_each
        self.pool = MHATokenToKVPool(
            size=(pages + 1) * page_size,
            page_size=page_size,
            dtype=dtype,
            head_num=kv_heads,
            head_dim=head_dim,
            v_head_dim=v_head_dim,
            layer_num=layers,
            device="cpu",
            enable_memory_saver=False,
        )
        # Rows are not the batch order, so that a mix-up of the two shows.
        self.table_rows = list(range(len(self.cached), 0, -1))
        self.table = ReqToTokenPool(len(self.cached), width, "cpu", enable_memory_saver=False)
        self.slots: list[list[int]] = []
        free = _shuffled_runs(pages, longest_run or pages, seed)
        for i, row in enumerate(self.table_rows):
            own = free[i * pages_each : (i + 1) * pages_each]
            slots = [page * page_size + offset for page in own for offset in range(page_size)]
            self.slots.append(slots[:width])
            self.table.req_to_token[row] = torch.tensor(slots[:width], dtype=torch.int32)
        for buffer in (*self.pool.k_buffer, *self.pool.v_buffer):
            buffer.copy_(self.random(buffer.shape))
        self.runner = SimpleNamespace(
            device="cpu",
            use_mla_backend=False,
            page_size=page_size,
            req_to_token_pool=self.table,
            token_to_kv_pool=self.pool,
            model_config=SimpleNamespace(context_len=width),
            sliding_window_size=None,
        )

    def random(self, shape: Sequence[int]) -> torch.Tensor:
        """Normal numbers of the rig's dtype."""
        return torch.randn(tuple(shape), generator=self.generator).to(self.dtype)

    def batch(
        self, mode: ForwardMode, seq_lens: Sequence[int], out_slots: Sequence[int], **fields: Any
    ) -> ForwardBatch:
        """A batch over all requests that stores new tokens in ``out_slots``."""
        return ForwardBatch(
            forward_mode=mode,
            batch_size=len(seq_lens),
            input_ids=torch.zeros(len(out_slots), dtype=torch.int64),
            req_pool_indices=torch.tensor(self.table_rows, dtype=torch.int64),
            seq_lens=torch.tensor(list(seq_lens), dtype=torch.int64),
            out_cache_loc=torch.tensor(list(out_slots), dtype=torch.int64),
            seq_lens_sum=sum(seq_lens),
            **fields,
        )

    def extension(self, new: Sequence[int], mode: ForwardMode = ForwardMode.EXTEND) -> ForwardBatch:
        """A batch that appends ``new`` tokens to each request."""
        lens = [have + more for have, more in zip(self.cached, new, strict=True)]
        return self.batch(
            mode,
            lens,
            [s for i, n in enumerate(lens) for s in self.slots[i][self.cached[i] : n]],
            extend_seq_lens=torch.tensor(list(new), dtype=torch.int32),
            extend_prefix_lens=torch.tensor(self.cached, dtype=torch.int32),
        )

    def attend(self, backend: Any, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """One attention layer on random queries, keys and values: the queries and the output."""
        rows = batch.out_cache_loc.shape[0]
        layer = self.layer
        q = self.random((rows, layer.tp_q_head_num * layer.qk_head_dim))
        k = self.random((rows, layer.tp_k_head_num, layer.qk_head_dim))
        v = self.random((rows, layer.tp_k_head_num, layer.v_head_dim))
        with forward_context(ForwardContext(attn_backend=backend)):
            out = layer(q, k, v, batch)
        stored = batch.out_cache_loc
        torch.testing.assert_close(self.pool.get_key_buffer(0)[stored], k, rtol=0, atol=0)
        torch.testing.assert_close(self.pool.get_value_buffer(0)[stored], v, rtol=0, atol=0)
        return q, out

    def check(self, q: torch.Tensor, out: torch.Tensor, visible: Sequence[Sequence[int]]) -> None:
        """Compare with softmax attention of row ``i`` over the pool slots ``visible[i]``."""
        assert out.shape[0] == len(visible)
        expected = self.dense(q, visible)
        assert out.dtype == self.dtype
        torch.testing.assert_close(
            out.double(), expected, rtol=0, atol=TOLERANCE[self.dtype], check_dtype=False
        )

    def dense(self, q: torch.Tensor, visible: Sequence[Sequence[int]]) -> torch.Tensor:
        """The oracle: float64, row by row and head by head's KV head."""
        layer = self.layer
        group = layer.tp_q_head_num // layer.tp_k_head_num
        keys, values = self.pool.get_key_buffer(0), self.pool.get_value_buffer(0)
        rows = []
        for row, slots in zip(q.double(), visible, strict=True):
            k = keys[list(slots)].double().repeat_interleave(group, dim=1)
            v = values[list(slots)].double().repeat_interleave(group, dim=1)
            heads = row.view(layer.tp_q_head_num, layer.qk_head_dim)
            scores = torch.einsum("hd,khd->hk", heads, k) * layer.scaling
            if layer.logit_cap > 0:
                scores = layer.logit_cap * torch.tanh(scores / layer.logit_cap)
            rows.append(torch.einsum("hk,khd->hd", scores.softmax(-1), v).flatten())
        return torch.stack(rows)

    def up_to(self, request: int, position: int) -> list[int]:
        """Slots that a causal row at ``position`` sees, within the layer's window."""
        first = 0 if self.window < 0 else max(0, position - self.window)
        return self.slots[request][first : position + 1]


def _shuffled_runs(pages: int, longest_run: int, seed: int) -> list[int]:
    """Pages 1 to ``pages`` in runs of at most ``longest_run``, the runs in random order."""
    runs = [
        list(range(start, min(pages + 1, start + longest_run)))
        for start in range(1, pages + 1, longest_run)
    ]
    random.Random(seed).shuffle(runs)
    return [page for run in runs for page in run]
