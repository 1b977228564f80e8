"""One request's life in order: target prefill, score, select, draft prefill, draft, verify."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from sglang.srt.runtime_context import get_device, get_parallel, get_schedule, get_spec
from sglang.srt.speculative.adaptive_runtime_state import AdaptiveController
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_utils import draft_tp_context, get_plan_stream, spec_stage_span
from sglang.srt.speculative.standalone_worker_v2 import StandaloneWorkerV2

from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.draft.demand import Demand
from specvlm_sglang.draft.pace import CostModelPolicy, pace_of
from specvlm_sglang.draft.self_draft import SelfDraftWorker
from specvlm_sglang.draft.self_start import SelfStart
from specvlm_sglang.draft.start import DraftStart
from specvlm_sglang.draft.worker import SpecVLMDraftWorker
from specvlm_sglang.host import audit_hooks, min_p, scheduler_hooks, verification
from specvlm_sglang.host.mrope import MRopeDeltas
from specvlm_sglang.host.phase_spans import PhaseSpans
from specvlm_sglang.host.ranks import of_first_rank
from specvlm_sglang.lossless.audit.auditor import Auditor
from specvlm_sglang.lossless.emitted import EmittedTokens
from specvlm_sglang.lossless.parameters import looks_back
from specvlm_sglang.models import family_of, mrope_delta
from specvlm_sglang.report.observer import Observer
from specvlm_sglang.report.phases import PhaseClock
from specvlm_sglang.report.publish import publish, shown
from specvlm_sglang.request import (
    Complete,
    Requests,
    RequestState,
    tokens_left,
    tokens_to_come,
    would_not_pay,
)
from specvlm_sglang.scoring.chooser import Chooser
from specvlm_sglang.scoring.scorer import Scorer
from specvlm_sglang.scoring.warm_up import warm_up

logger = logging.getLogger(__name__)


class SpecVLMWorker(StandaloneWorkerV2):
    """SGLang's standalone speculative worker (V2) with a video-pruned draft.

    The target's side is SGLang's own: prefill, radix cache, chunking, verification and sampling.
    """

    def __init__(self, server_args: Any, gpu_id: int, nccl_port: int, target_worker: Any) -> None:
        BaseSpecWorker.__init__(self)
        self.server_args = server_args
        self.topk = get_spec().speculative_eagle_topk
        self.speculative_num_steps = get_spec().speculative_num_steps
        self.speculative_num_draft_tokens = get_spec().speculative_num_draft_tokens
        self.gpu_id = gpu_id
        self.device = get_device().device
        self._target_worker = target_worker
        self.page_size = get_schedule().page_size
        self.speculative_algorithm = SpeculativeAlgorithm.from_string(
            get_spec().speculative_algorithm
        )
        self.config = SpecVLMConfig.from_environment()
        target_config = target_worker.model_runner.model_config.hf_config
        vision = getattr(target_config, "vision_config", None)
        family = family_of(target_config.architectures, getattr(vision, "spatial_merge_size", 1))
        self._has_mrope = family.mrope
        self.requests = Requests(self.config, family)
        rank_zero = get_parallel().tp_rank == 0
        self.observer = Observer(prometheus=server_args.enable_metrics and rank_zero)
        self.spans = PhaseSpans() if server_args.enable_trace else None
        self.phases = PhaseClock(self.device, None if self.spans is None else self.spans.add)
        drafts_itself = get_spec().speculative_draft_model_path is None
        if drafts_itself:
            self._draft_worker = SelfDraftWorker(
                server_args,
                gpu_id,
                target_worker,
                observer=self.observer,
                phases=self.phases,
                layers=self.config.self_layers,
            )
        else:
            self._draft_worker = SpecVLMDraftWorker(
                server_args,
                gpu_id,
                nccl_port,
                target_worker,
                config=self.config,
                observer=self.observer,
                phases=self.phases,
            )
        self.plan_stream, self.plan_stream_ctx = get_plan_stream(self.device)
        self.pace: CostModelPolicy | None = None
        self.demand = Demand()
        self.adaptive_controller = None
        if get_spec().speculative_adaptive:
            overlap = not server_args.disable_overlap_schedule
            self.pace = pace_of(
                self.speculative_num_steps,
                overlap=overlap,
                agreed=partial(of_first_rank, get_parallel().tp_group),
            )
            self.adaptive_controller = AdaptiveController(self, self.pace)
        self.scorer = Scorer(target_worker.model_runner, self.phases, self.device)
        chooser = Chooser(self.scorer, self.phases, self.device)
        start = SelfStart if drafts_itself else DraftStart
        self._start = start(self._draft_worker, chooser, self.observer)
        scheduler_hooks.install(self)
        self.auditor = Auditor(self.config.audit, self.observer)
        if self.config.audit > 0:
            audit_hooks.install(self.auditor)
        logger.info("SPECVLM: %s, draft %s", self.config, self._draft_worker.family.name)

    def alloc_memory_pool(
        self,
        memory_pool_config: Any = None,
        req_to_token_pool: Any = None,
        token_to_kv_pool_allocator: Any = None,
    ) -> None:
        """The pools, and what is kept beside the rows of the target's."""
        super().alloc_memory_pool(
            memory_pool_config=memory_pool_config,
            req_to_token_pool=req_to_token_pool,
            token_to_kv_pool_allocator=token_to_kv_pool_allocator,
        )
        rows = len(req_to_token_pool.req_to_token)
        self.mrope_deltas = MRopeDeltas(rows, self.device)
        self.emitted = EmittedTokens(
            rows,
            self._target_worker.model_runner.model_config.vocab_size,
            self.device,
        )

    def init_attention_backends(self) -> None:
        """Watch the target's attention before its graphs are captured, then build the draft's."""
        self.scorer.watch()
        super().init_attention_backends()

    def init_cuda_graphs(self) -> None:
        """Capture the graphs, then compile the kernels that the first video would wait for."""
        super().init_cuda_graphs()
        if self.device == "cuda":
            warm_up(self._target_worker.model_runner, get_parallel().tp_size)

    def _draft_model_runners(self) -> tuple[Any, ...]:
        # SGLang would treat these pools as slot-aligned with the target's; ours is not.
        return ()

    def weight_update_runners(self) -> list[tuple[str, Any]]:
        # Updated weights are the target's; those of another shape would end the scheduler.
        return []

    @property
    def last_shared_read_runner(self) -> Any:
        """The target's verification is the last to read the shared request table."""
        return self._target_worker.model_runner

    def clear_cache_pool(self) -> None:
        """Called on a cache flush: the draft's cached features go too."""
        self._draft_worker.features.clear()

    def longest_prefix(self, req: Any) -> int:
        """How much of ``req`` may come out of the radix cache: all before its query rows.

        The rows are then always computed, and the scores never depend on the cache.
        """
        state = self.requests.of(req)
        if self.pace is not None and state.needs_scores and not state.arrived:
            self._decide_at_arrival(self.pace, req, state)
        if state.needs_scores and state.layout.query_rows:
            return state.layout.query_start
        return len(req.full_untruncated_fill_ids)

    def _decide_at_arrival(self, pace: CostModelPolicy, req: Any, state: RequestState) -> None:
        """Nobody computes scores, or what the radix cache has, for a draft that would not pay."""
        state.arrived = True
        self.demand.arrived()
        filled = len(req.full_untruncated_fill_ids)
        state.refusal = self._why_not(pace, req, state, self.demand.together, filled)

    def state(self) -> dict[str, Any]:
        """What ``/server_info`` shows of SPECVLM."""
        return {
            **self.observer.totals.as_dict(),
            "retention": self.config.retention,
            "policy": self.config.policy,
            "draft_video_tokens": self.config.draft_video_tokens,
            **self._draft_worker.state(),
            "skipped_attention_layers": sorted(self.scorer.running.skipped_layers),
            "phases": self.phases.as_dict(),
            "pace": None if self.pace is None else self.pace.state(),
            "audit": self.auditor.state() if self.config.audit > 0 else None,
        }

    def verify(self, batch: Any, pp_proxy_tensors: Any = None, grammar_barrier: Any = None) -> Any:
        """SGLang's verification, with the sampling state that plain decoding would have."""
        self._draft_worker.note_kv()
        with (
            self.phases("verify"),
            self.mrope_deltas.shown_in(batch) if self._has_mrope else nullcontext(),
            min_p.applied(batch.sampling_info),
            verification.judged_by(self.emitted),
        ):
            return super().verify(
                batch, pp_proxy_tensors=pp_proxy_tensors, grammar_barrier=grammar_barrier
            )

    def forward_batch_generation(
        self,
        batch: Any,
        on_publish: Any = None,
        grammar_barrier: Any = None,
        pp_proxy_tensors: Any = None,
    ) -> Any:
        """A prefill, or a round: drafts that are due begin at its head."""
        with self._traced(batch.reqs):
            if batch.forward_mode.is_decode():
                self._begin_round(batch)
            return super().forward_batch_generation(
                batch, on_publish, grammar_barrier, pp_proxy_tensors
            )

    def _traced(self, reqs: Sequence[Any]) -> AbstractContextManager[None]:
        """Phases within are spans of these requests, where SGLang traces."""
        return nullcontext() if self.spans is None else self.spans.of(reqs)

    def _begin_round(self, batch: Any) -> None:
        """Choose the steps, and see to it that every draft knows what it drafts after."""
        due = self.requests.due(batch.reqs)
        if self.pace is not None:
            due = self._worth_starting(self.pace, due, len(batch.reqs))
            self.demand.round(batch.reqs)
            drafted = self._drafted_rounds(batch, due)
            self.pace.expect(drafted, [tokens_left(req) for req in batch.reqs])
            if not due and drafted.count(None) < len(drafted):
                self.pace.bound(self._draft_worker.most_gain(batch))
            assert self.adaptive_controller is not None
            self.adaptive_controller.activate_step_by_batch(len(batch.reqs))
            self.observer.steps(self.speculative_num_steps)
            self.observer.gain(self.pace.expected_gain, self.pace.measured_gain)
        if self._draft_worker.rests(batch):
            self.requests.rested(batch.reqs)
            return
        started = time.perf_counter()
        self._begin_drafts(batch, due, batch.spec_info)
        for one in due:
            one.publish(shown(one.report, self.observer))
        if self.pace is not None and due:
            self.pace.started(time.perf_counter() - started, len(due))
        behind = self.requests.behind(batch.reqs, batch.seq_lens_cpu)
        if behind:
            with draft_tp_context(self.draft_worker.parallel_layout):
                self._start.catch_up(batch, behind, batch.spec_info)
        if self.pace is not None:
            self._draft_worker.drop(self.requests.drafted(batch.reqs))
            if due or behind:
                self.pace.interrupted()

    def _worth_starting(
        self, pace: CostModelPolicy, due: Sequence[Complete], batch_size: int
    ) -> list[Complete]:
        """Those whose draft may save more than it takes; the others are told why they get none."""
        worth = []
        for one in due:
            reason = self._why_not(pace, one.req, one.state, batch_size, one.filled)
            if reason is None:
                worth.append(one)
                continue
            one.report.cold = reason
            one.state.begun()
            self.observer.began(one.report)
            one.publish(shown(one.report, self.observer))
        return worth

    def _why_not(
        self, pace: CostModelPolicy, req: Any, state: RequestState, together: int, filled: int
    ) -> str | None:
        """Why a draft would not pay for a request of a round with ``together``, or None."""
        if state.begins_anyway or state.options.detail:
            return None
        left = tokens_to_come(req, filled)
        lengths = self.demand.lengths(filled - len(req.origin_input_ids) + 1, left)
        scores = state.needs_scores and not state.scores.rows
        if pace.pays(lengths, together, scores=scores):
            return None
        state.begins_anyway = pace.refused(together)
        return None if state.begins_anyway else would_not_pay(lengths, left)

    def _drafted_rounds(self, batch: Any, due: Sequence[Complete]) -> list[int | None]:
        """In how many rounds each request's draft took part; None where it has none."""
        begins, warm = {one.index for one in due}, self._draft_worker.warm(batch)
        rounds = [self.requests.of(req).drafted_rounds for req in batch.reqs]
        return [
            before if warm[index] or index in begins else None
            for index, before in enumerate(rounds)
        ]

    def activate_step_by_batch(self, batch_size: int) -> None:
        """Nothing: the steps of a round are chosen at its head."""

    def build_adaptive_runtime_state(
        self,
        speculative_num_steps: int,
        speculative_num_draft_tokens: int,
        cuda_graph_bs: list[int] | None = None,
    ) -> Any:
        """SGLang's state for these steps, its target's attention watched."""
        state = super().build_adaptive_runtime_state(
            speculative_num_steps, speculative_num_draft_tokens, cuda_graph_bs
        )
        self.scorer.running.watch(state.target_attn_backend)
        return state

    def _begin_drafts(self, batch: Any, due: Sequence[Complete], drafted: Any) -> None:
        if not due:
            return
        with (
            draft_tp_context(self.draft_worker.parallel_layout),
            spec_stage_span("draft_extend"),
            self._traced([one.req for one in due]),
        ):
            self._start.begin(batch, due, drafted)

    def waits_for_vision(self, batch: Any) -> bool:
        """Whether a round of ``batch`` begins with an encoder that makes the host wait."""
        return self._start.waits_for_vision(self.requests.due(batch.reqs))

    def _forward_prefill_batch(
        self,
        batch: Any,
        on_publish: Any = None,
        pp_proxy_tensors: Any = None,
        coordination_plan: Any = None,
    ) -> Any:
        """Target prefill with scores; a completed prompt's draft begins with its first round."""
        if self.pace is not None:
            self.pace.interrupted()
        scored = self._arm_scores(batch)
        before = self.phases.seconds["scoring"]
        verification.resume(batch.sampling_info, batch.reqs, self.emitted)
        try:
            with self.phases("target_prefill"):
                output = self.target_worker.forward_batch_generation(
                    batch, pp_proxy_tensors=pp_proxy_tensors
                )
        finally:
            self.scorer.running.disarm()
        if self.pace is not None and scored:
            self.pace.scored(self.phases.seconds["scoring"] - before, scored)
        output.new_seq_lens = batch.seq_lens
        if on_publish is not None:
            on_publish(output.new_seq_lens)
        output.next_draft_input = self._draft_worker.undrafted(output.next_token_ids)
        complete = self.requests.complete(batch.reqs)
        for one in complete:
            req, newest = one.req, one.newest(output)
            if self._has_mrope:
                self.mrope_deltas.set(one.row, mrope_delta(req.multimodal_inputs))
            self.emitted.begin(one.row, looks_back(req), req.output_ids, newest)
            self.observer.finished_prefill(one.report)
        # Who asks what was selected gets it with the first token.
        asked = [one for one in complete if one.state.options.detail and one.report.pending]
        self._begin_drafts(batch, asked, output.next_draft_input)
        publish(output, len(batch.reqs), complete, self.observer)
        self._draft_worker.note_kv()
        return output

    def _arm_scores(self, batch: Any) -> int:
        """Score the query rows of a prefill; returns of how many prompts it has some."""
        passes, start = [], 0
        for req, prefix, extend in zip(
            batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True
        ):
            state = self.requests.of(req)
            wanted = state.rows_to_score(prefix, prefix + extend)
            row = req.kv.req_pool_idx
            passes.append((state.scores, state.layout, wanted, row, start - prefix))
            start += extend
        self.scorer.arm(passes)
        return sum(bool(wanted) for _, _, wanted, _, _ in passes)
