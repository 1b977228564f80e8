"""A request's draft begins: room, kept tokens, the pruned prompt, the draft's own prefill.

This comes at the head of the first round after the target's prefill. The first token needs no
draft, so it leaves before one is made, and an answer that ends with it never gets one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from sglang.srt.runtime_context import get_parallel

from specvlm_sglang.draft.inputs import (
    DraftPrompt,
    EncodedPrompt,
    build_continuation,
    build_draft_prompt,
    draft_length,
    encode_prompt,
)
from specvlm_sglang.draft.prefixes import Prefix, PrefixKey, end_of_videos, key_of
from specvlm_sglang.draft.worker import SpecVLMDraftWorker
from specvlm_sglang.host.ranks import (
    OTHER_RANK,
    agree_on_room,
    lost_anywhere,
    stop_where_ranks_parted,
)
from specvlm_sglang.models import mrope_delta
from specvlm_sglang.report.observer import POOL_FULL, Observer
from specvlm_sglang.request import Complete
from specvlm_sglang.scoring.chooser import Chooser, Kept

logger = logging.getLogger(__name__)


class DraftStart:
    """Gives requests whose prompt is complete their draft, or a reason to have none.

    Parameters
    ----------
    draft
        Whose cache and model it is.
    chooser
        Says which video tokens a request keeps.
    observer
        Told of each request how it went.
    """

    def __init__(self, draft: SpecVLMDraftWorker, chooser: Chooser, observer: Observer) -> None:
        self._draft = draft
        self._chooser = chooser
        self._observer = observer

    def waits_for_vision(self, due: Sequence[Complete]) -> bool:
        """Whether a picture or video of these requests is yet to be encoded by the draft.

        An encoder makes the host wait for the device.
        """
        return any(
            not self._draft.features.has(item)
            for one in due
            if one.req.multimodal_inputs is not None
            for item in one.req.multimodal_inputs.mm_items
        )

    def begin(self, batch: Any, due: Sequence[Complete], drafted: Any) -> None:
        """Prefill the draft for these requests of a batch; on all ranks alike.

        Parameters
        ----------
        batch
            SGLang's ``ScheduleBatch``: of a round that is about to begin, or of their prefill.
        due
            Requests whose draft has not begun; at their end it has, or their report says why not.
        drafted
            SGLang's ``EagleDraftInput`` of the batch. Its ``bonus_tokens`` are the newest tokens;
            in ``topk_p`` and ``topk_index`` these requests get what the draft proposes next.
        """
        keys = {one.index: _key_of(one) for one in due}
        prompts = self._prompts(batch, due, drafted.bonus_tokens, keys)
        failures = self._draft.prefill(batch, prompts, drafted)
        complete = {index: prompt for index, prompt in prompts if not prompt.first}
        for one in due:
            key = keys[one.index]
            if one.index in failures:
                self._go_cold(one, failures[one.index])
            elif key is not None and one.index in complete:
                self._share(one, key, complete[one.index])
            self._observer.began(one.report)

    def _share(self, one: Complete, key: PrefixKey, prompt: DraftPrompt) -> None:
        """Keep what the draft computed up to the end of the videos, for further questions."""
        filled = end_of_videos(one.state)
        tokens = filled - one.state.layout.video_tokens + one.state.kept_video_tokens
        self._draft.kv.share(
            one.row, key, prompt, tokens, filled, fallback=one.report.late_fallback
        )

    def catch_up(self, batch: Any, behind: Sequence[Complete], drafted: Any) -> None:
        """Prefill the draft with what it missed while it rested; on all ranks alike.

        Parameters
        ----------
        batch, drafted
            As for `begin`, of a round.
        behind
            Its requests that have a draft which missed tokens.
        """
        self._draft.reserve(batch)
        prompts, lost = [], {}
        for one in behind:
            missed, one.state.behind = one.state.behind, 0
            if not self._draft.kv.is_warm(one.row):
                continue
            try:
                prompts.append((one.index, self._continuation(one, missed, drafted)))
            except Exception as error:
                lost[one.index] = error
        lost |= self._draft.prefill(batch, prompts, drafted)
        for one in behind:
            if one.index in lost:
                logger.warning(
                    "SPECVLM: request %s lost its draft: %s", one.req.rid, lost[one.index]
                )
                self._draft.kv.free(one.row)
                self._observer.went_cold(1)

    def _continuation(self, one: Complete, missed: int, drafted: Any) -> DraftPrompt:
        draft, total = self._draft, one.filled + 1
        return build_continuation(
            one.req,
            total,
            missed,
            total - draft.kv.dropped(one.row) - missed,
            drafted.bonus_tokens[one.index : one.index + 1],
            family=draft.family,
            embed_tokens=draft.language_model.get_input_embeddings(),
            original_positions=draft.original_positions,
        )

    def _prompts(
        self,
        batch: Any,
        due: Sequence[Complete],
        newest_tokens: torch.Tensor,
        keys: Mapping[int, PrefixKey | None],
    ) -> list[tuple[int, DraftPrompt]]:
        """Draft prompts of the requests that got room, by their place in the batch."""
        prompts = []
        for one in due:
            prefix = self._draft.kv.prefixes.get(keys[one.index])
            try:
                prompt = self._prompt(one, newest_tokens[one.index : one.index + 1], prefix)
            except Exception as error:
                self._go_cold(one, error)
            else:
                if prompt is not None:
                    prompts.append((one.index, prompt))
            one.state.begun()
        mine = {index for index, _ in prompts}
        # Ranks with other drafts would verify other tokens.
        group, everyone = get_parallel().tp_group, {one.index for one in due}
        lost = lost_anywhere(group, len(batch.reqs), everyone, mine)
        for one in due:
            if one.index in mine & lost:
                stop_where_ranks_parted(self._draft.device)
                self._go_cold(one, RuntimeError(OTHER_RANK))
        return [(index, prompt) for index, prompt in prompts if index not in lost]

    def _prompt(
        self, one: Complete, newest_token: torch.Tensor, prefix: Prefix | None
    ) -> DraftPrompt | None:
        """One request's draft prompt; None where its draft has no room, as its report says."""
        state, req, draft = one.state, one.req, self._draft
        if not draft.kv.admit(
            one.row,
            draft_length=draft_length(state.layout, one.filled, state.kept_video_tokens),
            target_length=one.filled,
            mrope_delta=mrope_delta(req.multimodal_inputs),
            prefix=prefix,
        ):
            one.report.cold = POOL_FULL
            return None
        begin = 0 if prefix is None else prefix.filled
        needed = draft.features.bytes_to_encode(req.multimodal_inputs, begin)
        short = agree_on_room(get_parallel().tp_group, draft.device, needed)
        if short is not None:
            raise short
        encoded = cache(lambda: encode_prompt(req, one.filled, draft.features, begin))
        kept = self._kept(one, encoded) if state.prunes and prefix is None else None
        prompt = build_draft_prompt(
            req,
            one.filled,
            state.layout,
            None if kept is None else kept.indices,
            newest_token,
            family=draft.family,
            features=draft.features,
            embed_tokens=draft.language_model.get_input_embeddings(),
            original_positions=draft.original_positions,
            encoded=encoded(),
            kept_features=None if kept is None else kept.features,
            begin=begin,
        )
        if prefix is None:
            return prompt
        one.report.late_fallback, one.report.ranks_by_attention = prefix.fallback, False
        return prompt.after(prefix.tail, prefix.held)

    def _kept(self, one: Complete, encoded: Callable[[], EncodedPrompt]) -> Kept:
        """The kept video tokens; the draft encodes before where its features decide."""
        state = one.state
        return self._chooser.choose(
            state.layout,
            state.scores,
            one.report,
            policy=state.options.chosen,
            retention=state.options.retention,
            top_p=state.options.top_p,
            at_most=state.options.draft_video_tokens,
            features=lambda: encoded().of_videos(state.layout),
        )

    def _go_cold(self, one: Complete, error: Exception) -> None:
        """The draft is only an accelerator: the request goes on without it."""
        logger.warning("SPECVLM: request %s has no draft: %s", one.req.rid, error)
        self._draft.kv.free(one.row)
        one.report.cold = str(error) or type(error).__name__


def _key_of(one: Complete) -> PrefixKey | None:
    """What its prompt's beginning is kept under; None where nothing is."""
    try:
        return key_of(one.req, one.state)
    except Exception as error:
        logger.warning("SPECVLM: request %s shares nothing: %r", one.req.rid, error)
        return None
