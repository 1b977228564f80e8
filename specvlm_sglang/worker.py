"""One request's life in order: target prefill, score, select, draft prefill, draft, verify."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from sglang.srt.runtime_context import get_device, get_parallel, get_schedule, get_spec
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_utils import draft_tp_context, get_plan_stream, spec_stage_span
from sglang.srt.speculative.standalone_worker_v2 import StandaloneWorkerV2

from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.copies import LateFlag, to_device
from specvlm_sglang.detail import KEY, add_selection, align_entries, start_detail
from specvlm_sglang.draft.inputs import DraftPrompt, build_draft_prompt, draft_length
from specvlm_sglang.draft.worker import SpecVLMDraftWorker
from specvlm_sglang.host import min_p, prefill_only, scheduler_hooks, sessions, verification
from specvlm_sglang.models import family_of, mrope_delta
from specvlm_sglang.observability import (
    CUSTOM_PROCESSOR,
    POOL_FULL,
    LateReport,
    Observer,
    RequestReport,
)
from specvlm_sglang.phases import PhaseClock
from specvlm_sglang.pruning.prompt import VideoPrompt, prompt_of, unpruned
from specvlm_sglang.pruning.request import select_for
from specvlm_sglang.pruning.selection import kept_tokens
from specvlm_sglang.ranks import OTHER_RANK, agree, agree_on_all
from specvlm_sglang.request_options import RequestOptions, options_of
from specvlm_sglang.sampling.emitted import EmittedTokens
from specvlm_sglang.sampling.parameters import looks_back
from specvlm_sglang.scoring.attention_scores import accumulate_layer_scores, mean_scores
from specvlm_sglang.scoring.capture import CapturedRows, QueryCapture
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
        self.target_family = family_of(
            target_config.architectures, getattr(vision, "spatial_merge_size", 1)
        )
        rank_zero = get_parallel().tp_rank == 0
        self.observer = Observer(prometheus=server_args.enable_metrics and rank_zero)
        self.phases = PhaseClock(self.device)
        self._draft_worker = SpecVLMDraftWorker(server_args, gpu_id, nccl_port, target_worker)
        self._draft_worker.time_phases(self.phases)
        self._draft_worker.on_cold = self.observer.went_cold
        if self.config.positions == "original" and not self._draft_worker.family.mrope:
            self._draft_worker.number_as_full_prompt()
        self.plan_stream, self.plan_stream_ctx = get_plan_stream(self.device)
        self.adaptive_controller = None
        self.capture = QueryCapture()
        scheduler_hooks.install(self)
        min_p.install()
        verification.install()
        prefill_only.install()
        sessions.install(self)
        logger.info("SPECVLM: %s, draft %s", self.config, self._draft_worker.family.name)

    def alloc_memory_pool(
        self,
        memory_pool_config: Any = None,
        req_to_token_pool: Any = None,
        token_to_kv_pool_allocator: Any = None,
    ) -> None:
        """Size the draft's pool from the configured retention, then allocate it."""
        self._draft_worker.draft_kv_tokens = self._draft_pool_tokens(
            memory_pool_config.max_total_num_tokens
        )
        super().alloc_memory_pool(
            memory_pool_config=memory_pool_config,
            req_to_token_pool=req_to_token_pool,
            token_to_kv_pool_allocator=token_to_kv_pool_allocator,
        )
        kv = self._draft_worker.kv
        kv.on_freed = self._note_draft_kv
        self.emitted = EmittedTokens(
            len(req_to_token_pool.req_to_token),
            self._target_worker.model_runner.model_config.vocab_size,
            self.device,
        )
        logger.info(
            "SPECVLM: the draft's KV cache has %d tokens, the target's %d",
            kv.capacity,
            kv.dense_capacity,
        )

    def _draft_pool_tokens(self, target_tokens: int) -> int:
        if self.config.draft_kv_tokens is not None:
            return self.config.draft_kv_tokens
        return self.config.default_draft_kv_tokens(
            target_tokens,
            max_running_requests=get_schedule().max_running_requests or 1,
            reserve=2
            * max(self.speculative_num_steps * self.topk, self.speculative_num_draft_tokens),
        )

    def init_attention_backends(self) -> None:
        """Watch the target's attention before its graphs are captured, then build the draft's."""
        self.capture.watch(self._target_worker.model_runner.attn_backend)
        super().init_attention_backends()

    def init_cuda_graphs(self) -> None:
        """Capture the graphs, then compile the kernels that the first video would wait for."""
        super().init_cuda_graphs()
        if self.device != "cuda":
            return
        started = time.perf_counter()
        runner = self._target_worker.model_runner
        heads = runner.model_config.num_attention_heads // get_parallel().tp_size
        pool = runner.token_to_kv_pool
        try:
            warm_up(heads, runner.dtype, pool.get_key_buffer(pool.start_layer))
            torch.cuda.synchronize()
        except Exception as error:
            # The first video will fail in the same way, and go without a draft.
            logger.warning("SPECVLM: the scoring kernels do not run here: %s", error)
        else:
            seconds = time.perf_counter() - started
            logger.info("SPECVLM: scoring and selection are compiled, %.1f s", seconds)

    def _draft_model_runners(self) -> tuple[Any, ...]:
        # SGLang would treat these pools as slot-aligned with the target's; ours is not.
        return ()

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
        prompt = self._prompt(req)
        if prompt.query_rows and self._reads_scores(req, prompt):
            return prompt.query_start
        return len(req.full_untruncated_fill_ids)

    def begin_query_rows(self, req: Any, start: int) -> None:
        """Score with rows from ``start`` on: those before it are computed, and stay so."""
        prompt = self._prompt(req)
        if start > prompt.query_start:
            req.specvlm_prompt = replace(prompt, query_start=min(start, prompt.query_stop))

    def free_draft(self, row: int) -> None:
        """Take back the draft's slots of a ``req_pool_idx`` that a streaming session keeps."""
        self._draft_worker.kv.free(row)

    def state(self) -> dict[str, Any]:
        """What ``/server_info`` shows of SPECVLM."""
        kv = self._draft_worker.kv
        return {
            **self.observer.totals.as_dict(),
            "draft_kv_tokens": kv.capacity,
            "draft_kv_tokens_in_use": kv.slots_in_use,
            "target_kv_tokens": kv.dense_capacity,
            "skipped_attention_layers": sorted(self.capture.skipped_layers),
            "phases": self.phases.as_dict(),
        }

    def verify(self, batch: Any, pp_proxy_tensors: Any = None, grammar_barrier: Any = None) -> Any:
        """SGLang's verification, with the sampling state that plain decoding would have."""
        self._note_draft_kv()
        with (
            self.phases("verify"),
            min_p.applied(batch.sampling_info),
            verification.judged_by(self.emitted),
        ):
            return super().verify(
                batch, pp_proxy_tensors=pp_proxy_tensors, grammar_barrier=grammar_barrier
            )

    # Prefill

    def _forward_prefill_batch(
        self,
        batch: Any,
        on_publish: Any = None,
        pp_proxy_tensors: Any = None,
        coordination_plan: Any = None,
    ) -> Any:
        """Target prefill with capture, then for each completed prompt: score, select, draft."""
        self._arm_capture(batch)
        verification.resume(batch.sampling_info, batch.reqs, self.emitted)
        try:
            with self.phases("target_prefill"):
                output = self.target_worker.forward_batch_generation(
                    batch, pp_proxy_tensors=pp_proxy_tensors
                )
        finally:
            self.capture.disarm()
        output.new_seq_lens = batch.seq_lens
        if on_publish is not None:
            on_publish(output.new_seq_lens)
        with (
            draft_tp_context(self.draft_worker.parallel_layout),
            spec_stage_span("draft_extend"),
        ):
            reports = [self._report(req) for req in batch.reqs]
            self._begin_output(batch, output, reports)
            prompts = self._draft_prompts(batch, output, reports)
            output.next_draft_input = self._draft_prefill(batch, output, prompts, reports)
        self._publish(batch, output, reports)
        self._note_draft_kv()
        return output

    def _begin_output(
        self, batch: Any, output: Any, reports: Sequence[RequestReport | None]
    ) -> None:
        for index, (req, report) in enumerate(zip(batch.reqs, reports, strict=True)):
            if report is not None:
                self.emitted.begin(
                    req.kv.req_pool_idx,
                    looks_back(req),
                    req.output_ids,
                    output.next_token_ids[index : index + 1],
                )

    def _note_draft_kv(self) -> None:
        kv = self._draft_worker.kv
        self.observer.draft_kv(kv.slots_in_use, kv.capacity)

    def _arm_capture(self, batch: Any) -> None:
        plan = []
        start = 0
        for req, prefix, extend in zip(
            batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True
        ):
            prompt = self._prompt(req)
            first = max(prompt.query_start, prefix)
            stop = min(prompt.query_stop, prefix + extend)
            if first < stop and self._reads_scores(req, prompt):
                if not hasattr(req, "specvlm_rows") or first == prompt.query_start:
                    req.specvlm_rows = CapturedRows()
                plan.append((req.specvlm_rows, start + first - prefix, start + stop - prefix))
            start += extend
        self.capture.arm(plan)

    def _prompt(self, req: Any) -> VideoPrompt:
        try:
            return prompt_of(req, self.config.max_query_rows, self.target_family)
        except ValueError as error:
            # A processor's mistake must not stop the scheduler; the target answers as always.
            req.specvlm_no_draft = str(error)
            prompt = unpruned(len(req.origin_input_ids))
            req.specvlm_prompt = prompt
            return prompt

    def _options(self, req: Any) -> RequestOptions:
        return options_of(req, self.config)

    def _kept(self, req: Any, prompt: VideoPrompt) -> int:
        """K, from lengths and options alone."""
        options = self._options(req)
        return kept_tokens(prompt.video_lengths, options.chosen, options.retention)

    def _reads_scores(self, req: Any, prompt: VideoPrompt) -> bool:
        if req.is_prefill_only:
            return False
        if not self._options(req).chosen.needs_scores:
            return False
        return self._kept(req, prompt) < prompt.video_tokens

    def _report(self, req: Any) -> RequestReport | None:
        """What will be reported of ``req``.

        None where nothing is drafted next: in the middle of a chunked prefill, and where no token
        was asked for.
        """
        if req.is_prefill_only or req.extend_end != len(req.full_untruncated_fill_ids):
            return None
        prompt, options = self._prompt(req), self._options(req)
        report = RequestReport(prompt.video_tokens, self._kept(req, prompt), options.policy)
        report.detail = start_detail(req, prompt) if options.detail else None
        return report

    def _draft_prompts(
        self, batch: Any, output: Any, reports: Sequence[RequestReport | None]
    ) -> list[tuple[int, DraftPrompt]]:
        """Draft prompts of the requests whose target prefill is complete and that got room."""
        prompts = []
        for index, (req, report) in enumerate(zip(batch.reqs, reports, strict=True)):
            if report is None:
                continue
            newest_token = output.next_token_ids[index : index + 1]
            try:
                draft_prompt = self._draft_prompt(req, self._prompt(req), newest_token, report)
            except Exception as error:
                self._go_cold(req, report, error)
            else:
                if draft_prompt is not None:
                    prompts.append((index, draft_prompt))
            req.specvlm_rows = CapturedRows()
        return self._agreed(batch, reports, prompts)

    def _agreed(
        self,
        batch: Any,
        reports: Sequence[RequestReport | None],
        prompts: list[tuple[int, DraftPrompt]],
    ) -> list[tuple[int, DraftPrompt]]:
        """Prompts that every rank has: ranks with other drafts would verify other tokens."""
        parallel = get_parallel()
        if parallel.tp_size == 1:
            return prompts
        mine = {index for index, _ in prompts}
        missing = torch.tensor([index not in mine for index in range(len(batch.reqs))])
        lost = agree_on_all(parallel.tp_group, missing).tolist()
        for index, _ in prompts:
            if lost[index]:
                self._go_cold(batch.reqs[index], reports[index], RuntimeError(OTHER_RANK))
        return [(index, prompt) for index, prompt in prompts if not lost[index]]

    def _draft_prefill(
        self,
        batch: Any,
        output: Any,
        prompts: list[tuple[int, DraftPrompt]],
        reports: Sequence[RequestReport | None],
    ) -> Any:
        """Prefill the draft; where that fails, its requests go on without it."""
        drafted, failures = self.draft_worker.prefill(batch, prompts, output.next_token_ids)
        for index, failure in failures.items():
            self._go_cold(batch.reqs[index], reports[index], failure)
        return drafted

    def _go_cold(self, req: Any, report: RequestReport | None, error: Exception) -> None:
        """The draft is only an accelerator: the request goes on without it."""
        logger.warning("SPECVLM: request %s has no draft: %s", req.rid, error)
        self.draft_worker.kv.free(req.kv.req_pool_idx)
        if report is not None:
            report.cold = str(error) or type(error).__name__

    def _publish(self, batch: Any, output: Any, reports: Sequence[RequestReport | None]) -> None:
        """Count the reports and put them into the responses' ``meta_info``."""
        for req, report in zip(batch.reqs, reports, strict=True):
            if report is not None:
                self.observer.finished_prefill(report)
                align_entries(req)
        if output.logits_output is None or not any(reports):
            return
        output.logits_output.customized_info = {
            **(output.logits_output.customized_info or {}),
            KEY: [None if report is None else self._shown(report) for report in reports],
        }

    def _shown(self, report: RequestReport) -> dict[str, Any]:
        if report.late_fallback is None:
            return report.as_dict()
        return LateReport(report.as_dict(), report.late_fallback, self.observer.fell_back)

    def _draft_prompt(
        self, req: Any, prompt: VideoPrompt, newest_token: torch.Tensor, report: RequestReport
    ) -> DraftPrompt | None:
        """Return one request's draft prompt; None where the draft's cache has no room for it."""
        if getattr(req, "specvlm_no_draft", None):
            raise ValueError(req.specvlm_no_draft)
        if req.custom_logit_processor is not None:
            report.cold = CUSTOM_PROCESSOR
            return None
        draft = self.draft_worker
        filled = len(req.full_untruncated_fill_ids)
        length = draft_length(prompt, filled, report.kept_video_tokens)
        if not draft.kv.admit(
            req.kv.req_pool_idx,
            draft_length=length,
            target_length=filled,
            mrope_delta=mrope_delta(req.multimodal_inputs),
        ):
            report.cold = POOL_FULL
            return None
        return build_draft_prompt(
            req,
            prompt,
            self._select(req, prompt, report),
            newest_token,
            family=draft.family,
            features=draft.features,
            embed_tokens=draft.draft_runner.model.get_input_embeddings(),
            original_positions=draft.original_positions,
        )

    def _select(self, req: Any, prompt: VideoPrompt, report: RequestReport) -> torch.Tensor | None:
        """Indices of the kept video tokens, int64 ``[K]`` on the device; None keeps all.

        Whatever fails on one rank fails on all: they meet here in the same collectives.
        """
        if report.kept_video_tokens == prompt.video_tokens:
            return None
        options = self._options(req)
        is_scored = options.chosen.needs_scores and prompt.query_rows > 0
        if options.chosen.needs_scores and not is_scored:
            report.fallback = "no text after the video"
        scores = torch.zeros(prompt.video_tokens, dtype=torch.float32, device=self.device)
        selection, failure = None, None
        started = time.perf_counter()
        if is_scored:
            with self.phases("scoring"):
                try:
                    self._add_scores(scores, req, prompt)
                except Exception as error:
                    failure = error
                scores = self._mean(scores, req, prompt)
            report.scoring_seconds = time.perf_counter() - started
        with self.phases("selection"):
            try:
                selection = select_for(prompt, options, scores)
            except Exception as error:
                failure = failure or error
        parallel = get_parallel()
        if parallel.tp_size > 1:
            failure = agree(parallel.tp_group, failure)
        if failure is not None:
            raise failure
        assert selection is not None
        if parallel.tp_size > 1:
            # Scores may differ in their last bit between ranks; the draft's shards must not part.
            parallel.tp_group.broadcast(selection.indices, src=0)
        if report.fallback is None:
            report.late_fallback = LateFlag(selection.fallback)
        if report.detail is not None:
            add_selection(report.detail, scores if is_scored else None, selection)
        return selection.indices

    def _add_scores(self, total: torch.Tensor, req: Any, prompt: VideoPrompt) -> None:
        """Add this rank's attention of the query rows to each video token, float32 ``[N]``."""
        rows: CapturedRows = req.specvlm_rows
        if rows.rows() != prompt.query_rows:
            raise RuntimeError(f"captured {rows.rows()} of {prompt.query_rows} query rows")
        runner = self._target_worker.model_runner
        slots = runner.req_to_token_pool.req_to_token[req.kv.req_pool_idx, : prompt.length].long()
        query_positions = torch.arange(prompt.query_start, prompt.query_stop, device=self.device)
        video_positions = to_device(torch.from_numpy(prompt.video_positions), self.device)
        for layer_id, chunks in rows.queries.items():
            facts = self.capture.layers[layer_id]
            accumulate_layer_scores(
                total,
                torch.cat(chunks),
                runner.token_to_kv_pool.get_key_buffer(layer_id),
                slots,
                query_positions,
                video_positions,
                facts.scaling,
                logit_cap=facts.logit_cap or None,
                key_scale=facts.key_scale,
            )

    def _mean(self, total: torch.Tensor, req: Any, prompt: VideoPrompt) -> torch.Tensor:
        """Mean attention over layers, rows and the heads of all ranks, float32 ``[N]``."""
        parallel = get_parallel()
        rows: CapturedRows = req.specvlm_rows
        return mean_scores(
            total,
            layers=len(rows.queries),
            rows=prompt.query_rows,
            heads=rows.heads() * parallel.tp_size,
            all_reduce=parallel.tp_group.all_reduce if parallel.tp_size > 1 else None,
        )
