"""SGLang's attention interface over our plans: one backend for every forward mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

from specvlm_sglang.cpu.attention import requests
from specvlm_sglang.cpu.attention.plan import Call, PlanOptions, plan_calls
from specvlm_sglang.cpu.attention.registration import BACKEND_NAME
from specvlm_sglang.cpu.attention.requests import DraftStep, RequestKeys

_KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class BatchMetadata:
    """The requests of the current forward pass, and the calls planned for them so far."""

    def __init__(self, batch_requests: Sequence[RequestKeys]) -> None:
        self.requests = batch_requests
        self.rows = max((item.first_row + item.rows for item in batch_requests), default=0)
        self._plans: dict[tuple[PlanOptions, bool], list[Call]] = {}

    def calls(self, options: PlanOptions, window_pool: SWAKVPool | None) -> list[Call]:
        """The calls for layers with ``options``.

        Parameters
        ----------
        options
            What the layer asks for.
        window_pool
            The pool, if the layer's keys are in the sliding-window part of one that is split:
            slots are numbered differently there.
        """
        key = (options, window_pool is not None)
        calls = self._plans.get(key)
        if calls is None:
            batch_requests = self.requests
            if window_pool is not None:
                batch_requests = [
                    RequestKeys(
                        window_pool.translate_loc_from_full_to_swa(item.slots),
                        item.first_row,
                        item.rows,
                        item.context,
                        item.tail,
                    )
                    for item in batch_requests
                ]
            calls = self._plans[key] = plan_calls(batch_requests, options)
        return calls


class SpecVLMTorchAttnBackend(AttentionBackend):
    """Paged attention in torch on the CPU, float32, bfloat16 or float16.

    Serves extension with a cached prefix, decode, target verify (chains and trees), draft decode
    and draft extension; sliding windows, logit caps, and encoder-style layers. Runs eagerly.

    Parameters
    ----------
    model_runner
        SGLang's ``ModelRunner``: its KV pool and its own ``req_to_token`` table are read.
    draft_step
        Set on the backends of a multi-step draft decode.

    Raises
    ------
    ValueError
        If the device is no CPU, the model uses MLA, or the KV cache is quantized.
    """

    # A host copy costs nothing here, and SGLang's host-side paths need no Triton.
    needs_cpu_seq_lens = True

    def __init__(self, model_runner: Any, draft_step: DraftStep | None = None) -> None:
        super().__init__()
        if torch.device(model_runner.device).type != "cpu":
            raise ValueError(
                f"--attention-backend {BACKEND_NAME} needs --device cpu, not {model_runner.device}"
            )
        if getattr(model_runner, "use_mla_backend", False):
            raise ValueError(
                f"--attention-backend {BACKEND_NAME} serves multi-head and grouped-query "
                "attention; this model uses multi-head latent attention (MLA)"
            )
        self.device = model_runner.device
        self.req_to_token_pool = model_runner.req_to_token_pool
        self.token_to_kv_pool = model_runner.token_to_kv_pool
        if self.token_to_kv_pool.dtype not in _KV_DTYPES:
            raise ValueError(
                f"--kv-cache-dtype gives {self.token_to_kv_pool.dtype}; "
                f"{BACKEND_NAME} takes auto or bfloat16"
            )
        self.max_context_len = model_runner.model_config.context_len
        self.draft_step = draft_step
        self._split_pool = (
            self.token_to_kv_pool if isinstance(self.token_to_kv_pool, SWAKVPool) else None
        )
        self.forward_metadata: BatchMetadata | None = None

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Read lengths and KV slots of the batch; the layers of this forward pass use them.

        Raises
        ------
        NotImplementedError
            If the batch belongs to an encoder-decoder model.
        """
        if forward_batch.encoder_lens is not None:
            raise NotImplementedError(
                f"{BACKEND_NAME} has no cross-attention: encoder-decoder models are not served"
            )
        batch_requests: list[RequestKeys] = []
        if not forward_batch.forward_mode.is_idle():
            table = self.req_to_token_pool.req_to_token
            batch_requests = requests.of_batch(forward_batch, table, self.draft_step)
        self.forward_metadata = BatchMetadata(batch_requests)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Store the new keys and values and attend: extension, draft extension, target verify.

        Parameters
        ----------
        q
            ``[rows, heads * head_dim]`` or ``[rows, heads, head_dim]``, request after request.
        k, v
            ``[rows, kv_heads, head_dim]`` and ``[rows, kv_heads, v_head_dim]``; None where the
            layer reads keys that another layer stored.
        layer
            SGLang's ``RadixAttention``.
        forward_batch
            The batch given to `init_forward_metadata`, with this pass's ``out_cache_loc``.
        save_kv_cache
            Whether to store ``k`` and ``v``.
        **kwargs
            Extras of other backends (attention sinks and the like), refused unless None.

        Returns
        -------
        torch.Tensor
            ``[rows, heads * v_head_dim]``, the dtype of ``q``; padding rows are zero.
        """
        # As SGLang's FlashAttention backend: both non-causal kinds look ahead while extending.
        bidirectional = layer.attn_type != AttentionType.DECODER
        return self._attend(q, k, v, layer, forward_batch, save_kv_cache, bidirectional, kwargs)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Store the new keys and values and attend, one row per request or draft branch.

        Parameters and result are those of `forward_extend`.
        """
        return self._attend(q, k, v, layer, forward_batch, save_kv_cache, False, kwargs)

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool,
        bidirectional: bool,
        extras: dict[str, Any],
    ) -> torch.Tensor:
        _refuse_unsupported(layer, extras)
        pool, layer_id = self.token_to_kv_pool, layer.layer_id
        window_pool = self._split_pool
        if window_pool is not None and not window_pool.layers_mapping[layer_id][1]:
            window_pool = None
        if save_kv_cache and k is not None and v is not None:
            window_loc = None
            if window_pool is not None:
                window_loc = window_pool.translate_loc_from_full_to_swa(forward_batch.out_cache_loc)
            pool.set_kv_buffer(layer, KVWriteLoc.for_batch(forward_batch, swa_loc=window_loc), k, v)

        metadata = self.forward_metadata
        if metadata is None:
            raise RuntimeError("init_forward_metadata was not called before this forward pass")
        heads = layer.tp_q_head_num
        q = q.reshape(-1, heads, layer.qk_head_dim)
        rows = q.shape[0]
        if rows < metadata.rows:
            raise RuntimeError(f"got {rows} query rows for a batch planned with {metadata.rows}")
        options = PlanOptions(
            window=layer.sliding_window_size,
            bidirectional=bidirectional,
            group=heads // layer.tp_k_head_num,
            dtype=q.dtype,
        )
        out = q.new_empty(rows, heads, layer.v_head_dim)
        if rows > metadata.rows:
            out[metadata.rows :] = 0
        k_pool, v_pool = pool.get_key_buffer(layer_id), pool.get_value_buffer(layer_id)
        for call in metadata.calls(options, window_pool):
            call.run(q, out, k_pool, v_pool, layer.scaling, layer.logit_cap)
        return out.view(rows, -1)

    def support_triton(self) -> bool:
        """No Triton on a CPU: SGLang takes its torch paths."""
        return False

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """Length of padding requests: one token, the pool's padding slot."""
        return 1

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> NoReturn:
        """Refuse graph capture."""
        _refuse_graphs()

    def init_forward_metadata_out_graph(
        self, forward_batch: Any, in_capture: bool = False
    ) -> NoReturn:
        """Refuse graph capture and replay."""
        _refuse_graphs()

    def init_forward_metadata_for_breakable_cuda_graph_capture(
        self, forward_batch: Any
    ) -> NoReturn:
        """Refuse graph capture."""
        _refuse_graphs()

    def update_verify_buffers_to_fill_after_draft(
        self, spec_info: Any, cuda_graph_bs: int | None
    ) -> NoReturn:
        """Refuse planning a verify before its draft is known."""
        raise NotImplementedError(
            f"{BACKEND_NAME} plans a verify from its finished draft; "
            "unset SGLANG_ENABLE_OVERLAP_PLAN_STREAM"
        )


def _refuse_unsupported(layer: Any, extras: dict[str, Any]) -> None:
    if layer.is_cross_attention:
        raise NotImplementedError(f"{BACKEND_NAME} has no cross-attention")
    if layer.logit_cap > 0 and layer.logit_capping_method != "tanh":
        raise NotImplementedError(
            f"{BACKEND_NAME} caps logits by tanh, not {layer.logit_capping_method!r}"
        )
    if layer.xai_temperature_len > 0:
        raise NotImplementedError(f"{BACKEND_NAME} has no temperature scaling of long sequences")
    for name, value in extras.items():
        if value is not None:
            raise NotImplementedError(f"{BACKEND_NAME} does not support {name!r} in attention")


def _refuse_graphs() -> NoReturn:
    raise NotImplementedError(f"{BACKEND_NAME} runs eagerly; pass --disable-cuda-graph")
