"""The target drafts for itself, reading the kept columns of its own KV cache.

There is no second model: no weights, no prefill, no KV cache and no pass after verification. A
round of s steps is s passes of the target over one token a request, on a short request table
(`KeptColumns`), and the verification as always. The first pass is over the newest token, whose keys
and values nobody has computed yet: s tokens take s passes, where a draft model needs one fewer and
a pass over what was verified.

What drafting writes lies in the slots that the verification of the same round overwrites.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.configs.draft_parallel import DraftParallelSpec, DraftTPExecution
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.runtime_context import get_device, get_spec
from sglang.srt.speculative.base_spec_worker import EagleDraftWorkerBase
from sglang.srt.speculative.draft_parallel import resolve_draft_parallel_layout
from sglang.srt.speculative.draft_utils import DraftBackendFactory
from sglang.srt.speculative.eagle_utils import (
    default_tree_mask_mode,
    per_step_draft_out_cache_loc,
)
from sglang.srt.speculative.eagle_worker_common import prepare_for_draft
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_utils import draft_tp_context

from specvlm_sglang.draft.features import DraftFeatures
from specvlm_sglang.draft.kept_columns import KeptColumns
from specvlm_sglang.draft.rounds import DraftRounds
from specvlm_sglang.host import draft_positions, runner_copy
from specvlm_sglang.models import ModelFamily, family_of
from specvlm_sglang.report.observer import Observer
from specvlm_sglang.report.phases import PhaseClock

logger = logging.getLogger(__name__)


class SelfDraftWorker(DraftRounds):
    """Drafts chains with the target's own model runner."""

    kv: KeptColumns

    def __init__(
        self,
        server_args: Any,
        gpu_id: int,
        target_worker: Any,
        *,
        observer: Observer,
        phases: PhaseClock,
    ) -> None:
        # SGLang's standalone worker would load a model here.
        EagleDraftWorkerBase.__init__(self)
        self.server_args = server_args
        self.gpu_id = gpu_id
        self.target_worker = target_worker
        self.device = get_device().device
        self.topk = get_spec().speculative_eagle_topk
        self.speculative_num_steps = get_spec().speculative_num_steps
        self.speculative_num_draft_tokens = get_spec().speculative_num_draft_tokens
        self.speculative_algorithm = SpeculativeAlgorithm.from_string(
            get_spec().speculative_algorithm
        )
        self._rebuild_topk1_chain_buffers()
        self.parallel_layout = resolve_draft_parallel_layout(
            DraftParallelSpec(tp_execution=DraftTPExecution.TARGET_LAYOUT)
        )
        self.tree_mask_mode = default_tree_mask_mode()
        self.begin_rounds(observer, phases)
        runner = target_worker.model_runner
        config = runner.model_config
        self.family: ModelFamily = family_of(config.hf_config.architectures)
        # Of the policies that read features only; nothing is encoded for others.
        self.features = DraftFeatures(
            runner.model,
            self.family,
            device=self.device,
            phases=phases,
            width=config.hf_text_config.hidden_size,
        )

    @property
    def draft_runners(self) -> list[Any]:
        """No weights, no memory and no graphs but the target's."""
        return []

    def alloc_memory_pool(
        self,
        memory_pool_config: Any = None,
        req_to_token_pool: Any = None,
        token_to_kv_pool_allocator: Any = None,
    ) -> None:
        """Make the short request table; the pool is the target's."""
        self.req_to_token_pool = req_to_token_pool
        self.token_to_kv_pool_allocator = token_to_kv_pool_allocator
        self.kv = KeptColumns(
            req_to_token_pool, target_capacity=memory_pool_config.max_total_num_tokens
        )
        req_to_token_pool.attach_aux_cache(self.kv)
        self.draft_runner = runner_copy.drafting_copy(
            self.target_worker.model_runner, self.kv.req_to_token_pool
        )

    def init_attention_backends(self) -> None:
        """Build the backends of a round's passes."""
        with draft_tp_context(self.parallel_layout):
            self.init_attention_backend()

    def init_attention_backend(self) -> None:
        """One backend a step; SGLang's factory counts the newest token as a step of its own."""
        factory = DraftBackendFactory(self.draft_runner, self.topk, self.speculative_num_steps + 1)
        self.draft_attn_backend = factory.create_decode_backend()
        self.draft_runner.draft_attn_backend = self.draft_attn_backend
        self.draft_runner.attn_backend = self.target_worker.model_runner.attn_backend
        self.draft_extend_attn_backend = None
        self.tree_mask_mode = default_tree_mask_mode()

    def init_cuda_graphs(self) -> None:
        """None: what drafts runs eagerly, on the target's runner."""
        runner_copy.share_runners(self.draft_runner, self.target_worker.model_runner)
        self._capture_cuda_graphs()

    def _capture_cuda_graphs(self) -> None:
        self.cuda_graph_runner = None
        self.cuda_graph_runner_for_draft_extend = None

    def state(self) -> dict[str, Any]:
        """What ``/server_info`` shows of the draft's KV cache, which is the target's."""
        return {
            "draft": "self",
            "draft_kv_tokens": 0,
            "draft_kv_tokens_in_use": 0,
            "draft_kv_tokens_free": 0,
            "draft_kv_tokens_cached": 0,
            "draft_prefix_hits": 0,
            "target_kv_tokens": self.kv.dense_capacity,
        }

    def reserve(self, batch: Any) -> None:
        """Nothing: drafts go into the slots of the verification."""

    def rests(self, batch: Any) -> bool:
        """Never: what the target verified, its draft has seen."""
        return False

    def _draft_tokens(self, batch: Any) -> Any:
        draft_input = batch.spec_info
        draft_input.topk_index = draft_input.bonus_tokens.long()[:, None]
        self.kv.follow(batch)
        with self.kv.as_seen_by_draft(batch), self._numbered():
            forward_batch, _, _ = prepare_for_draft(
                draft_input,
                self.kv.req_to_token_pool,
                batch,
                None,
                self.draft_runner,
                self.topk,
                self.speculative_num_steps,
                # Columns of this table are not those of the verification's.
                target_translator=None,
                num_draft_tokens=self.speculative_num_draft_tokens,
            )
            self.draft_attn_backend.init_forward_metadata(forward_batch)
            forward_batch.mark_forward_metadata_ready()
            return self.draft_forward(forward_batch)

    @contextmanager
    def _numbered(self) -> Iterator[None]:
        """Number drafted tokens as the full prompt does; M-RoPE ids are so already."""
        if self.family.mrope:
            yield
            return
        with draft_positions.numbered_as(self.draft_runner.model, self.kv.missing):
            yield

    def draft_forward(self, forward_batch: Any) -> Any:
        """Draft a chain after ``spec_info.topk_index``, the newest tokens ``[batch, 1]``."""
        newest = forward_batch.spec_info.topk_index
        size, steps = newest.shape[0], self.speculative_num_steps
        slots = per_step_draft_out_cache_loc(forward_batch.out_cache_loc, size, 1, steps)
        drafted = []
        for step, backend in enumerate(self.draft_attn_backend.attn_backends):
            if step:
                forward_batch.positions.add_(1)
                if self.family.mrope:
                    forward_batch.mrope_positions.add_(1)
            forward_batch.input_ids = newest.flatten()
            forward_batch.out_cache_loc = slots[step]
            with forward_context(ForwardContext(attn_backend=backend), forward_batch=forward_batch):
                output = self.draft_runner.forward(forward_batch).logits_output
            newest = torch.argmax(output.next_token_logits, dim=-1, keepdim=True)
            drafted.append(newest)
        parents, indices = self._topk1_parents_prealloc, self._topk1_score_indices_prealloc
        assert parents is not None
        assert indices is not None
        return parents[:size], indices[:size], torch.cat(drafted, dim=1), None

    def _draft_extend_for_decode(
        self, batch: Any, batch_result: Any, *, kv_loc_plan: Any = None
    ) -> None:
        """Nothing is left to compute: verification wrote the exact keys and values."""
        self._undrafted.hand_on(batch_result.next_draft_input, len(batch.reqs))
        batch_result.next_draft_input.hidden_states = None
