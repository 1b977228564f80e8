"""One decoder layer of a draft model with random weights, on the CPU attention of the plugin."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

from specvlm_sglang.cpu.attention.backend import SpecVLMTorchAttnBackend
from tests.support.attention import AttentionRig

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 1024, 16, 4, 64, 2816


class DraftLayer:
    """A layer of width 1,024 (16 query heads on 4 KV heads of width 64), bfloat16.

    Parameters
    ----------
    context
        Tokens in its KV cache.
    room
        Slots for new ones.
    """

    def __init__(self, context: int, room: int) -> None:
        self._rig = AttentionRig(
            [context],
            room,
            dtype=torch.bfloat16,
            heads=HEADS,
            kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            longest_run=0,
        )
        self._backend = SpecVLMTorchAttnBackend(self._rig.runner)
        self._context = context
        queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        self._widths = [queries, keys, keys]
        self._qkv = self._weights(queries + 2 * keys, HIDDEN)
        self._out = self._weights(HIDDEN, queries)
        self._gate_up = self._weights(2 * INTERMEDIATE, HIDDEN)
        self._down = self._weights(HIDDEN, INTERMEDIATE)

    def prefill(self, tokens: int) -> Callable[[], torch.Tensor]:
        """Read ``tokens`` at once; rewrites the same slots at every call."""
        return self._forward(tokens, self._rig.extension([tokens]))

    def step(self) -> Callable[[], torch.Tensor]:
        """One token after the context."""
        slot = self._rig.slots[0][self._context]
        return self._forward(1, self._rig.batch(ForwardMode.DECODE, [self._context + 1], [slot]))

    def _weights(self, out_width: int, in_width: int) -> torch.Tensor:
        return self._rig.random((out_width, in_width)) * in_width**-0.5

    def _forward(self, tokens: int, batch: ForwardBatch) -> Callable[[], torch.Tensor]:
        hidden = self._rig.random((tokens, HIDDEN))

        @torch.inference_mode()
        def forward() -> torch.Tensor:
            self._backend.init_forward_metadata(batch)
            query, key, value = F.linear(hidden, self._qkv).split(self._widths, dim=-1)
            grouped = (tokens, KV_HEADS, HEAD_DIM)
            key, value = key.reshape(grouped), value.reshape(grouped)
            with forward_context(ForwardContext(attn_backend=self._backend)):
                mixed = self._rig.layer(query.contiguous(), key, value, batch)
            after = hidden + F.linear(mixed, self._out)
            gate, up = F.linear(after, self._gate_up).chunk(2, dim=-1)
            return after + F.linear(F.silu(gate) * up, self._down)

        return forward
