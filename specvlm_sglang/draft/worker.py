"""The draft worker: a complete small model with its own KV cache and its own view of a batch.

Built on SGLang's standalone draft worker (V2). What differs:

- the KV cache is private and short (`DraftKVCache`);
- the prompt is pruned, and unshifted: SGLang's EAGLE family feeds its draft the prompt without its
  first token, which costs a complete model acceptance. Ours sees every kept token at its own
  position, and the newest token after them: one slot more;
- lengths are the draft's, in every forward pass of the draft and nowhere else.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import torch
from sglang.kernels.ops.speculative.cache_locs import assign_extend_cache_locs_uniform_func
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch
from sglang.srt.runtime_context import get_parallel, get_schedule
from sglang.srt.speculative.eagle_worker_common import prepare_for_draft
from sglang.srt.speculative.spec_utils import renorm_draft_probs
from sglang.srt.utils.common import fast_topk

from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.copies import to_device
from specvlm_sglang.draft.features import DraftFeatures
from specvlm_sglang.draft.inputs import (
    DraftPrompt,
    PromptPart,
    deepstack_of,
    pass_bytes,
    split_into_passes,
)
from specvlm_sglang.draft.kv_cache import DraftKVCache
from specvlm_sglang.draft.rounds import DraftRounds
from specvlm_sglang.draft.vocabulary import limit_drafts, widen_embedding
from specvlm_sglang.host import batch_view, draft_positions, embedding_override
from specvlm_sglang.host.ranks import agree, agree_on_room, stop_where_ranks_parted
from specvlm_sglang.models import ModelFamily, family_of
from specvlm_sglang.report.observer import Observer
from specvlm_sglang.report.phases import PhaseClock

logger = logging.getLogger(__name__)


class SpecVLMDraftWorker(DraftRounds):
    """SGLang's standalone draft worker on a private, pruned KV cache."""

    kv: DraftKVCache
    """From `alloc_memory_pool` on."""

    def __init__(
        self,
        server_args: Any,
        gpu_id: int,
        nccl_port: int,
        target_worker: Any,
        *,
        config: SpecVLMConfig,
        observer: Observer,
        phases: PhaseClock,
    ) -> None:
        super().__init__(server_args, gpu_id, nccl_port, target_worker)
        self.begin_rounds(observer, phases)
        embedding_override.install()
        model, architectures = self.draft_runner.model, self.draft_runner.model_config.hf_config
        self.family: ModelFamily = family_of(architectures.architectures)
        self.language_model = self.family.language_model(model)
        self.features = DraftFeatures(
            model,
            self.family,
            device=self.device,
            phases=phases,
            width=self.draft_runner.model_config.hf_text_config.hidden_size,
        )
        self._config = config
        self.original_positions = config.positions == "original" and not self.family.mrope
        """Number 1-D positions as the full prompt does (``--specvlm-positions original``)."""
        if self.original_positions:
            draft_positions.number_drafted_tokens_as(model, lambda rows: self.kv.missing(rows))
        self._match_vocabulary()

    def _match_vocabulary(self) -> None:
        size = self.target_worker.model_runner.model_config.vocab_size
        limit_drafts(self.language_model.logits_processor, size)
        widen_embedding(self.language_model.get_input_embeddings(), size)

    def alloc_memory_pool(
        self,
        memory_pool_config: Any = None,
        req_to_token_pool: Any = None,
        token_to_kv_pool_allocator: Any = None,
    ) -> None:
        """Allocate the private table, allocator and pool; hook it to the target's table."""
        self.req_to_token_pool = req_to_token_pool
        self.token_to_kv_pool_allocator = token_to_kv_pool_allocator
        target_tokens = memory_pool_config.max_total_num_tokens
        tokens = min(self._pool_tokens(target_tokens), target_tokens)
        page = token_to_kv_pool_allocator.page_size
        tokens = max(tokens // page, 2) * page
        self.draft_worker.alloc_memory_pool(
            memory_pool_config=dataclasses.replace(memory_pool_config, max_total_num_tokens=tokens),
            req_to_token_pool=None,
            token_to_kv_pool_allocator=None,
        )
        self.init_token_map()
        self.init_lm_head()
        self.kv = DraftKVCache(
            self.draft_runner.req_to_token_pool,
            self.draft_runner.token_to_kv_pool_allocator,
            target_capacity=target_tokens,
        )
        self.kv.on_freed = self.note_kv
        req_to_token_pool.attach_aux_cache(self.kv)
        logger.info(
            "SPECVLM: the draft's KV cache has %d tokens, the target's %d",
            self.kv.capacity,
            self.kv.dense_capacity,
        )
        self._branch_headroom = 0
        if page > 1 and self.topk > 1:
            # Each branch of a tree starts on a page of its own.
            pages = -(-(page - 1 + self.speculative_num_steps) // page)
            self._branch_headroom = self.topk * pages * page

    def _pool_tokens(self, target_tokens: int) -> int:
        if self._config.draft_kv_tokens is not None:
            return self._config.draft_kv_tokens
        return self._config.default_draft_kv_tokens(
            target_tokens,
            max_running_requests=get_schedule().max_running_requests or 1,
            reserve=2
            * max(self.speculative_num_steps * self.topk, self.speculative_num_draft_tokens),
        )

    def prefill(
        self, batch: Any, prompts: Sequence[tuple[int, DraftPrompt]], drafted: Any
    ) -> dict[int, Exception]:
        """Run the draft over its prompts and draft the first token of the next round.

        In passes of at most ``--chunked-prefill-size`` tokens, as the target's prefill: prompts
        out of the radix cache cost the target next to nothing, so many may complete at once.

        Parameters
        ----------
        batch
            SGLang's ``ScheduleBatch``.
        prompts
            ``(index in the batch, prompt)`` of requests that were admitted to the draft's cache.
        drafted
            SGLang's ``EagleDraftInput`` of the batch; gets the first drafted tokens of these.

        Returns
        -------
        dict
            What went wrong, by index in the batch; the same indices on every rank. These requests
            have no draft.
        """
        failures: dict[int, Exception] = {}
        for parts in split_into_passes(prompts, self._pass_tokens(), self.kv.page_size):
            alive = [part for part in parts if part.index not in failures]
            if not alive:
                continue
            failure = self._run_pass(batch, alive, drafted)
            if failure is not None:
                failures |= {part.index: failure for part in alive}
        return failures

    def _run_pass(self, batch: Any, parts: Sequence[PromptPart], drafted: Any) -> Exception | None:
        """One pass of `prefill`; what went wrong on any rank."""
        group, is_alone = get_parallel().tp_group, get_parallel().tp_size == 1
        failure = None
        if not is_alone:
            config, width = self.draft_runner.model_config, self.draft_runner.dtype.itemsize
            needed = pass_bytes(parts, config.hf_text_config, width)
            failure = agree_on_room(group, self.device, needed)
            if failure is not None:
                return failure
        try:
            self._prefill_pass(batch, parts, drafted)
        except Exception as error:
            # Its frames hold what the pass had computed, while the next pass needs the memory.
            failure = error.with_traceback(None)
        if is_alone:
            return failure
        agreed = agree(group, failure)
        if agreed is not failure:
            stop_where_ranks_parted(self.device)
        return agreed

    def _pass_tokens(self) -> int:
        schedule = get_schedule()
        chunk: int | None = schedule.chunked_prefill_size
        return chunk if chunk is not None and chunk > 0 else int(schedule.max_prefill_tokens)

    def _prefill_pass(self, batch: Any, parts: Sequence[PromptPart], drafted: Any) -> None:
        """Run the draft over these parts; write what it proposes after prompts that they end."""
        with self.phases("draft_prefill"):
            logits = self._forward_parts(batch, parts)
        ended = [row for row, part in enumerate(parts) if part.is_last]
        if not ended:
            return
        if len(ended) < len(parts):
            logits = logits[to_device(torch.tensor(ended), self.device)]
        probabilities = renorm_draft_probs(logits, batch.sampling_info, False)
        best_p, best_index = fast_topk(probabilities, self.topk, dim=-1)
        indices = to_device(torch.tensor([parts[row].index for row in ended]), self.device)
        drafted.topk_p[indices] = best_p
        drafted.topk_index[indices] = best_index

    def _forward_parts(self, batch: Any, parts: Sequence[PromptPart]) -> torch.Tensor:
        """Run the draft over ``parts``; returns the logits after each, ``[parts, vocabulary]``."""
        reqs = [batch.reqs[part.index] for part in parts]
        rows = [req.kv.req_pool_idx for req in reqs]
        table = self.kv.req_to_token_pool.req_to_token
        stops = torch.tensor([part.stop for part in parts], dtype=torch.int64)
        view = batch_view.prefill_of(
            batch,
            reqs,
            rows=torch.tensor(rows, dtype=torch.int64),
            device_rows=to_device(
                torch.tensor(rows, dtype=batch.req_pool_indices.dtype), self.device
            ),
            starts=[part.start for part in parts],
            stops=stops,
            device_stops=to_device(stops, self.device),
            input_ids=torch.cat([part.of(part.prompt.input_ids) for part in parts]),
            slots=torch.cat(
                [part.slots(table[row]) for row, part in zip(rows, parts, strict=True)]
            ),
            mrope_positions=[part.mrope_positions for part in parts],
        )
        forward_batch = ForwardBatch.init_new(
            view,
            self.draft_runner,
            capture_hidden_mode=CaptureHiddenMode.NULL,
            return_hidden_states_before_norm=False,
        )
        # Pictures come as embeddings.
        forward_batch.mm_inputs = [None] * len(parts)
        places = [
            part.of(part.prompt.positions) for part in parts if part.prompt.positions is not None
        ]
        if places:
            forward_batch.positions = torch.cat(places)
        embeddings = torch.cat([part.of(part.prompt.embeddings) for part in parts])
        with embedding_override.embeddings_for_next_forward(embeddings, deepstack_of(parts)):
            output = self.draft_runner.forward(forward_batch).logits_output
        logits: torch.Tensor = output.next_token_logits
        return logits

    def _draft_tokens(self, batch: Any) -> Any:
        draft_input = batch.spec_info
        with self.kv.as_seen_by_draft(batch):
            forward_batch, can_run_graph, _ = prepare_for_draft(
                draft_input,
                self.kv.req_to_token_pool,
                batch,
                self.cuda_graph_runner,
                self.draft_runner,
                self.topk,
                self.speculative_num_steps,
                # The draft's slots are not the verify window: no shared plan.
                target_translator=None,
                num_draft_tokens=self.speculative_num_draft_tokens,
            )
            if can_run_graph:
                return self.cuda_graph_runner.execute(forward_batch)
            if not forward_batch.forward_mode.is_idle() and self.speculative_num_steps > 1:
                self.draft_attn_backend.init_forward_metadata(forward_batch)
                forward_batch.mark_forward_metadata_ready()
            return self.draft_forward(forward_batch)

    def state(self) -> dict[str, Any]:
        """What ``/server_info`` shows of the draft's KV cache."""
        return {
            "draft": "model",
            "draft_kv_tokens": self.kv.capacity,
            "draft_kv_tokens_in_use": self.kv.slots_in_use,
            "draft_kv_tokens_free": self.kv.slots_free,
            "draft_kv_tokens_cached": self.kv.prefixes.unused,
            "draft_prefix_hits": self.kv.prefixes.hits,
            "target_kv_tokens": self.kv.dense_capacity,
        }

    def rests(self, batch: Any) -> bool:
        """Whether the draft sees nothing of this round and catches up later.

        Under overlap scheduling the host would not know what it missed.
        """
        return self.speculative_num_steps == 0 and not batch.enable_overlap

    def reserve(self, batch: Any) -> None:
        """Give the rows of ``batch`` the slots of the round; who gets none loses its draft."""
        rows = batch_view.rows_of(batch)
        lengths = [req.kv.kv_allocated_len + self._branch_headroom for req in batch.reqs]
        gone_cold = self.kv.reserve(rows, lengths)
        if gone_cold:
            self._observer.went_cold(len(gone_cold))

    def _draft_extend_for_decode(
        self, batch: Any, batch_result: Any, *, kv_loc_plan: Any = None
    ) -> None:
        """Process the accepted tokens with the draft, on its own slots and lengths."""
        if self.speculative_num_steps == 0:
            # Nobody has reserved: there was nothing to draft.
            self.reserve(batch)
        if self.rests(batch) or not self.has_drafts(batch):
            self._undrafted.hand_on(batch_result.next_draft_input, len(batch.reqs))
            return
        try:
            self._extend(batch, batch_result)
        except Exception as error:
            self._lose_drafts(batch, error)
            self._undrafted.hand_on(batch_result.next_draft_input, len(batch.reqs))
        # A complete draft reads none; a graph returns some all the same, a prefill does not.
        batch_result.next_draft_input.hidden_states = None

    def _extend(self, batch: Any, batch_result: Any) -> None:
        with self.phases("draft_extend"), self.kv.as_seen_by_draft(batch):
            if not batch.forward_mode.is_idle():
                batch.out_cache_loc = assign_extend_cache_locs_uniform_func(
                    batch.req_pool_indices,
                    self.kv.req_to_token_pool.req_to_token,
                    batch.seq_lens,
                    len(batch.reqs),
                    self.speculative_num_draft_tokens,
                    batch.device,
                )
            super()._draft_extend_for_decode(batch, batch_result, kv_loc_plan=None)
