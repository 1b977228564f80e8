"""The target drafts for itself, reading the kept columns of its own KV cache.

There is no second model: no weights, no prefill, no KV cache and no pass after verification. A
round of s steps is s passes of the target on a short request table (`KeptColumns`), and the
verification as always. The first pass is over the newest token, whose keys and values nobody has
computed yet; those behind it are SGLang's own loop. A draft model needs one pass fewer, and one
over what was verified.

What drafting writes lies in the slots that the verification of the same round overwrites. Where the
first layers alone draft, the others' keys and values come from the verification, as all do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from sglang.srt.configs.draft_parallel import DraftParallelSpec, DraftTPExecution
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.runtime_context import get_device, get_spec
from sglang.srt.speculative.base_spec_worker import EagleDraftWorkerBase
from sglang.srt.speculative.draft_parallel import resolve_draft_parallel_layout
from sglang.srt.speculative.draft_utils import DraftBackendFactory
from sglang.srt.speculative.eagle_utils import default_tree_mask_mode
from sglang.srt.speculative.eagle_worker_common import prepare_for_draft
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_utils import draft_tp_context, renorm_draft_probs
from sglang.srt.utils.common import fast_topk

from specvlm_sglang.draft.costs import most_gain
from specvlm_sglang.draft.features import DraftFeatures
from specvlm_sglang.draft.kept_columns import KeptColumns
from specvlm_sglang.draft.rounds import DraftRounds
from specvlm_sglang.host import draft_positions, early_exit, runner_copy, step_bytes
from specvlm_sglang.host.batch_view import rows_of
from specvlm_sglang.models import ModelFamily, family_of
from specvlm_sglang.report.observer import Observer
from specvlm_sglang.report.phases import PhaseClock

logger = logging.getLogger(__name__)


class SelfDraftWorker(DraftRounds):
    """Drafts chains and trees with the target's own model runner."""

    kv: KeptColumns

    def __init__(
        self,
        server_args: Any,
        gpu_id: int,
        target_worker: Any,
        *,
        observer: Observer,
        phases: PhaseClock,
        layers: int | None = None,
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
        # What SGLang's loop asks of a draft of other kinds.
        self.hot_token_id = None
        self.index_share_for_mtp_iteration = False
        self.seed_dsa_topk_from_draft_extend = False
        self.begin_rounds(observer, phases)
        runner = target_worker.model_runner
        self.layers = layers
        """How many of the target's layers draft, from the first on; None: all."""
        self._most_steps = self.speculative_num_steps
        self._decoder = None if layers is None else early_exit.decoder_of(runner.model)
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
        runner = self.target_worker.model_runner
        self.draft_runner = runner_copy.drafting_copy(runner, self.kv.req_to_token_pool)

    def init_attention_backends(self) -> None:
        """Build the backends of a round's passes."""
        with draft_tp_context(self.parallel_layout):
            self.init_attention_backend()

    def init_attention_backend(self) -> None:
        """One backend for the pass over the newest token, and those of SGLang's passes behind it.

        SGLang's factory counts the newest token as a step of its own.
        """
        runner, steps = self.draft_runner, self.speculative_num_steps
        self._first = DraftBackendFactory(runner, 1, 2).create_decode_backend()
        self.draft_attn_backend = DraftBackendFactory(
            runner, self.topk, steps
        ).create_decode_backend()
        runner.draft_attn_backend = self.draft_attn_backend
        runner.attn_backend = self.target_worker.model_runner.attn_backend
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
            "self_layers": self.layers,
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

    @cached_property
    def _step_bytes(self) -> tuple[int, float] | None:
        """Bytes of a plain step: its weights, and each token's keys and values; None: not known."""
        runner = self.target_worker.model_runner
        weights = step_bytes.weight_bytes(runner)
        return None if weights is None else (weights, step_bytes.kv_bytes_per_token(runner))

    def most_gain(self, batch: Any) -> float:
        """See `DraftRounds.most_gain`: a draft step saves keys and values, and reads all weights.

        By the bytes of a step, as if nothing else took time; infinite where they are not known, or
        where fewer layers draft.
        """
        if self._step_bytes is None or self.layers is not None:
            return math.inf
        weights, kv = self._step_bytes
        tokens = sum(req.kv.kv_allocated_len for req in batch.reqs)
        missing = sum(self.kv.dropped(row) for row in rows_of(batch))
        return most_gain(self._most_steps, 1 - kv * missing / (weights + kv * tokens))

    def _draft_tokens(self, batch: Any) -> Any:
        self.kv.follow(batch)
        with self.kv.as_seen_by_draft(batch), self._numbered(), self._cut_short():
            self._pass_over_newest(batch)
            batch.seq_lens = batch.seq_lens + 1
            if batch.seq_lens_cpu is not None:
                batch.seq_lens_cpu = batch.seq_lens_cpu + 1
                batch.seq_lens_sum = int(batch.seq_lens_cpu.sum())
            forward_batch = self._prepared(batch, self.topk, self.speculative_num_steps)
            if self.speculative_num_steps > 1:
                self.draft_attn_backend.init_forward_metadata(forward_batch)
                forward_batch.mark_forward_metadata_ready()
            return self.draft_forward(forward_batch)

    def _pass_over_newest(self, batch: Any) -> None:
        """Draft the first tokens; they go where SGLang's loop looks for them."""
        draft_input = batch.spec_info
        forward_batch = self._prepared(batch, 1, 1)
        forward_batch.input_ids = draft_input.bonus_tokens.long()
        self._first.init_forward_metadata(forward_batch)
        forward_batch.mark_forward_metadata_ready()
        context = ForwardContext(attn_backend=self._first.attn_backends[0])
        with forward_context(context, forward_batch=forward_batch):
            output = self.draft_runner.forward(forward_batch).logits_output
        logits = output.next_token_logits
        if self.topk == 1:
            draft_input.topk_index = torch.argmax(logits, dim=-1, keepdim=True)
            draft_input.topk_p = torch.ones_like(draft_input.topk_index, dtype=torch.float32)
            return
        probabilities = renorm_draft_probs(logits, batch.sampling_info, False)
        draft_input.topk_p, draft_input.topk_index = fast_topk(probabilities, self.topk, dim=-1)

    def _prepared(self, batch: Any, topk: int, steps: int) -> Any:
        """A draft's forward batch, on the short table."""
        forward_batch, _, _ = prepare_for_draft(
            batch.spec_info,
            self.kv.req_to_token_pool,
            batch,
            None,
            self.draft_runner,
            topk,
            steps,
            # Columns of this table are not those of the verification's.
            target_translator=None,
            num_draft_tokens=self.speculative_num_draft_tokens,
        )
        return forward_batch

    def _cut_short(self) -> AbstractContextManager[None]:
        """The target's model ends after the layers that draft."""
        if self.layers is None:
            return nullcontext()
        return early_exit.first_layers(self._decoder, self.layers)

    @contextmanager
    def _numbered(self) -> Iterator[None]:
        """Number drafted tokens as the full prompt does; M-RoPE ids are so already."""
        if self.family.mrope:
            yield
            return
        with draft_positions.numbered_as(self.draft_runner.model, self.kv.missing):
            yield

    def _draft_extend_for_decode(
        self, batch: Any, batch_result: Any, *, kv_loc_plan: Any = None
    ) -> None:
        """Nothing is left to compute: verification wrote the exact keys and values."""
        self._undrafted.hand_on(batch_result.next_draft_input, len(batch.reqs))
        batch_result.next_draft_input.hidden_states = None
