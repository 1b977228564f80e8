"""What a server on `fake_cuda` tensors is made of: a case, and stand-ins for SGLang's two models.

Their forward passes check what they are given and return new logits; pools, tables and attention
metadata are SGLang's own.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from tests.support.fake_cuda import FakeCuda

ROWS = 6
"""Requests at once."""

SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
    "penalties": {
        "temperature": 0,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.2,
        "min_new_tokens": 4,
    },
}


@dataclass(frozen=True)
class Case:
    """One server.

    Attributes
    ----------
    target, draft
        Checkpoints; only their configurations are read. Without a draft the target drafts for
        itself.
    backend
        ``--attention-backend``.
    topk
        ``--speculative-eagle-topk``.
    page
        ``--page-size``.
    policies
        Each gets a video of its own, one after another.
    sampling
        Of `SAMPLING`; each gets a prefill and two rounds of its own, the first of which grows.
    positions
        ``--specvlm-positions``; None for the family's own.
    """

    target: str
    draft: str | None
    backend: str
    topk: int = 1
    page: int = 1
    policies: tuple[str, ...] = ("specvlm",)
    sampling: tuple[str, ...] = tuple(SAMPLING)
    positions: str | None = None


class Model:
    """What is asked of SGLang's model class beside its forward pass."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.logits_processor = SimpleNamespace(vocab_size=config.vocab_size)
        self.embedding = Embedding(config)
        self.language_model = self

    def get_input_embeddings(self) -> Embedding:
        return self.embedding

    def get_video_feature(self, items: Sequence[Any]) -> torch.Tensor:
        (item,) = items
        assert item.feature.is_cuda
        tokens = sum(last - first + 1 for first, last in item.offsets)
        vision = self.config.hf_config.vision_config
        deepstack = len(getattr(vision, "deepstack_visual_indexes", ()))
        width = self.config.hidden_size * (1 + deepstack)
        return torch.empty((tokens, width), dtype=torch.bfloat16, device="cuda")

    def forward(self, input_ids: Any, positions: Any, forward_batch: Any) -> Any:
        assert positions.is_cuda
        assert positions.shape == input_ids.shape


class Embedding:
    """SGLang's ``VocabParallelEmbedding`` of one rank."""

    tp_size = 1

    def __init__(self, config: Any) -> None:
        shape = (config.vocab_size, config.hidden_size)
        self.weight = torch.nn.Parameter(
            torch.empty(shape, dtype=torch.bfloat16, device="cuda"), requires_grad=False
        )

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding(ids, self.weight)


class Runner:
    """SGLang's ``ModelRunner`` as far as attention metadata and our worker read it."""

    def __init__(
        self, case: Case, mode: FakeCuda, arguments: Any, is_draft: bool, context_length: Any
    ) -> None:
        from sglang.srt.configs.model_config import ModelConfig
        from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

        self.case, self.is_draft_worker, self.server_args = case, is_draft, arguments
        self.mode = mode
        self.read: set[int] = set()
        """Addresses that the captured part of a pass read beside what it was given."""
        self.model_config = ModelConfig.from_server_args(
            arguments,
            model_path=case.draft if is_draft else None,
            is_draft_model=is_draft,
            context_length=context_length,
        )
        self.model = Model(self.model_config)
        self.device, self.gpu_id = "cuda", 0
        self.dtype = self.kv_cache_dtype = torch.bfloat16
        self.kv_cache_dtype_str = "auto"
        self.spec_algorithm = SpeculativeAlgorithm.from_string("SPECVLM")
        self.page_size = case.page
        self.sliding_window_size = None
        self.use_mla_backend = False
        self.lora_manager = self.watermark_state = self.canary_manager = None
        self.hybrid_gdn_config = self.draft_attention_backend = None
        self.decode_cuda_graph_runner = self.graph_shared_output = None
        self.ngram_embedding_manager = SimpleNamespace(enabled=False)
        self.prefill_attention_backend_str = self.decode_attention_backend_str = case.backend
        self.spec_aux_config = SimpleNamespace(draft_model_config=None)
        self.attn_cp_size, self.max_running_requests = 1, ROWS
        self.prefill_aware_swa = self.init_new_workspace = False
        self.attn_backend: Any = None
        self.passes: list[tuple[str, int]] = []

    def decode_num_tokens_per_req(self, num_draft_tokens: int | None = None) -> int:
        from sglang.srt.runtime_context import get_spec

        return int(get_spec().speculative_num_draft_tokens)

    def allocate(self, tokens: int) -> None:
        from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
        from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
        from sglang.srt.mem_cache.kv_index_translator import KVIndexTranslator
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool

        config, page = self.model_config, self.case.page
        self.max_total_num_tokens = tokens
        self.req_to_token_pool = ReqToTokenPool(
            ROWS, config.context_len + 8, "cuda", enable_memory_saver=False
        )
        self.token_to_kv_pool = MHATokenToKVPool(
            size=tokens,
            page_size=page,
            dtype=torch.bfloat16,
            head_num=config.get_num_kv_heads(1),
            head_dim=config.head_dim,
            layer_num=config.num_hidden_layers,
            device="cuda",
            enable_memory_saver=False,
            enable_kv_cache_copy=self.case.topk > 1,
        )
        common: dict[str, Any] = {
            "dtype": torch.bfloat16,
            "device": "cuda",
            "kvcache": self.token_to_kv_pool,
            "need_sort": False,
        }
        self.token_to_kv_pool_allocator = (
            TokenToKVPoolAllocator(tokens, **common)
            if page == 1
            else PagedTokenToKVPoolAllocator(tokens, page, **common)
        )
        self.kv_index_translator = KVIndexTranslator(
            req_to_token=self.req_to_token_pool.req_to_token,
            token_to_kv_pool_allocator=self.token_to_kv_pool_allocator,
            token_to_kv_pool=self.token_to_kv_pool,
            page_size=page,
            device="cuda",
            is_draft_worker=self.is_draft_worker,
        )

    def start_attention(self) -> None:
        module, name = {
            "fa3": ("flashattention_backend", "FlashAttentionBackend"),
            "triton": ("triton_backend", "TritonAttnBackend"),
            "flashinfer": ("flashinfer_backend", "FlashInferAttnBackend"),
        }[self.case.backend]
        module = importlib.import_module(f"sglang.srt.layers.attention.{module}")
        self.attn_backend = getattr(module, name)(self)
        self.attn_backend.forward_extend = lambda *_, **__: None

    def logits(self, rows: int) -> Any:
        from sglang.srt.layers.logits_processor import LogitsProcessorOutput

        size = self.model.logits_processor.vocab_size
        logits = torch.empty((rows, size), dtype=torch.float32, device="cuda")
        return LogitsProcessorOutput(next_token_logits=logits)

    def check(self, forward_batch: Any) -> None:
        """What a model is given lies on the device and has one entry a token."""
        tokens = forward_batch.input_ids.shape[0]
        shapes = {
            "input_ids": (tokens,),
            "positions": (tokens,),
            "out_cache_loc": (tokens,),
            "mrope_positions": (3, tokens),
            "seq_lens": (forward_batch.batch_size,),
            "req_pool_indices": (forward_batch.batch_size,),
        }
        for name, shape in shapes.items():
            value = getattr(forward_batch, name)
            if name == "mrope_positions" and value is None:
                assert not self.model_config.model_is_mrope, "no M-RoPE ids"
                continue
            assert value.is_cuda, f"{name} on {value.device}"
            assert value.shape == shape, f"{name}: {tuple(value.shape)} is not {shape}"
        self.passes.append((forward_batch.forward_mode.name, tokens))

    def forward(self, forward_batch: Any, **_: Any) -> Any:
        """The draft's pass."""
        from sglang.srt.managers import mm_utils

        self.check(forward_batch)
        tokens = forward_batch.input_ids.shape[0]
        if forward_batch.needs_forward_metadata_init() and self.attn_backend is not None:
            self.attn_backend.init_forward_metadata(forward_batch)
        rows = tokens
        if forward_batch.forward_mode.is_extend_without_speculative():
            rows = len(forward_batch.extend_seq_lens_cpu)
            embeddings = mm_utils.prepare_mm_inputs(
                forward_batch.input_ids, forward_batch, None, {}
            )
            assert embeddings.shape == (tokens, self.model_config.hidden_size)
            assert embeddings.is_cuda
        given = [forward_batch.input_ids, forward_batch.positions, forward_batch.req_pool_indices]
        with self.mode.capturing(given) as read:
            self.model.forward(forward_batch.input_ids, forward_batch.positions, forward_batch)
        if not forward_batch.forward_mode.is_extend_without_speculative():
            self.read |= read
        return SimpleNamespace(logits_output=self.logits(rows))


class ModelWorker:
    """SGLang's ``TpModelWorker``, of the draft and of the target."""

    tokenizer: Any = None
    random_seed = 0
    device = "cuda"
    made: Any = None
    """Makes the runner of the next draft."""

    def __init__(self, *_: Any, runner: Runner | None = None, **__: Any) -> None:
        self.model_runner = runner or ModelWorker.made()
        self.model_config = self.model_runner.model_config

    def alloc_memory_pool(self, memory_pool_config: Any = None, **_: Any) -> None:
        self.model_runner.allocate(memory_pool_config.max_total_num_tokens)

    def init_attention_backends(self) -> None:
        self.model_runner.start_attention()

    def forward_batch_generation(
        self, batch: Any, forward_batch: Any = None, is_verify: bool = False, **_: Any
    ) -> Any:
        """The target's prefill or verification."""
        from sglang.srt.managers.utils import GenerationBatchResult
        from sglang.srt.model_executor.forward_batch_info import ForwardBatch

        runner = self.model_runner
        if is_verify:
            runner.check(forward_batch)
            runner.attn_backend.init_forward_metadata(forward_batch)
            rows = forward_batch.input_ids.shape[0]
            return GenerationBatchResult(logits_output=runner.logits(rows))
        forward_batch = ForwardBatch.init_new(batch, runner, return_hidden_states_before_norm=False)
        runner.check(forward_batch)
        runner.attn_backend.init_forward_metadata(forward_batch)
        self._attend(forward_batch)
        newest = torch.empty(len(batch.reqs), dtype=torch.int64, device="cuda")
        logits = runner.logits(len(batch.reqs))
        return GenerationBatchResult(logits_output=logits, next_token_ids=newest)

    def _attend(self, forward_batch: Any) -> None:
        config = self.model_config
        heads, size = config.num_attention_heads, config.head_dim
        tokens = forward_batch.input_ids.shape[0]
        for layer_id in range(config.num_hidden_layers):
            layer = SimpleNamespace(
                layer_id=layer_id,
                sliding_window_size=-1,
                is_cross_attention=False,
                scaling=size**-0.5,
                logit_cap=0.0,
                k_scale_float=None,
                tp_q_head_num=heads,
                qk_head_dim=size,
            )
            queries = torch.empty((tokens, heads * size), dtype=torch.bfloat16, device="cuda")
            self.model_runner.attn_backend.forward_extend(queries, None, None, layer, forward_batch)
