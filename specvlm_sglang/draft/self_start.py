"""A request's draft begins where the target drafts for itself: kept tokens are chosen, no more."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.runtime_context import get_parallel

from specvlm_sglang.draft.inputs import encode_prompt, kept_positions
from specvlm_sglang.draft.self_draft import SelfDraftWorker
from specvlm_sglang.host.ranks import OTHER_RANK, lost_anywhere
from specvlm_sglang.models import mrope_delta
from specvlm_sglang.report.observer import Observer
from specvlm_sglang.request import Complete
from specvlm_sglang.scoring.chooser import Chooser

logger = logging.getLogger(__name__)

NOTHING_TO_MIX = "nothing can be mixed into the target's own keys and values (+merge)"


class SelfStart:
    """Gives requests whose prompt is complete the columns that their draft reads.

    Parameters
    ----------
    draft
        Whose columns they are.
    chooser
        Says which video tokens a request keeps.
    observer
        Told of each request how it went.
    """

    def __init__(self, draft: SelfDraftWorker, chooser: Chooser, observer: Observer) -> None:
        self._draft = draft
        self._chooser = chooser
        self._observer = observer

    def waits_for_vision(self, due: Sequence[Complete]) -> bool:
        """Whether the policy of one of these requests reads features that are yet to be encoded."""
        return any(
            not self._draft.features.has(item)
            for one in due
            if one.state.prunes and one.state.options.chosen.needs_features
            for item in one.req.multimodal_inputs.mm_items
        )

    def begin(self, batch: Any, due: Sequence[Complete], drafted: Any) -> None:
        """Note what the drafts of these requests read; on all ranks alike.

        Parameters
        ----------
        batch
            SGLang's ``ScheduleBatch``: of a round that is about to begin, or of their prefill.
        due
            Requests whose draft has not begun; at their end it has, or their report says why not.
        drafted
            SGLang's ``EagleDraftInput`` of the batch; nothing is added to it.
        """
        mine = set()
        for one in due:
            try:
                self._begin(one)
            except Exception as error:
                self._go_cold(one, error)
            else:
                mine.add(one.index)
            one.state.begun()
        # Ranks with other drafts would verify other tokens.
        everyone = {one.index for one in due}
        lost = lost_anywhere(get_parallel().tp_group, len(batch.reqs), everyone, mine)
        for one in due:
            if one.index in mine & lost:
                self._go_cold(one, RuntimeError(OTHER_RANK))
            self._observer.began(one.report)

    def catch_up(self, batch: Any, behind: Sequence[Complete], drafted: Any) -> None:
        """Nothing: a draft that reads the target's cache has missed nothing."""

    def _begin(self, one: Complete) -> None:
        state, draft = one.state, self._draft
        kept = self._kept(one) if state.prunes else None
        columns = kept_positions(state.layout, one.filled, kept, draft.kv.offsets.device)
        draft.kv.begin(one.row, columns, one.filled, mrope_delta(one.req.multimodal_inputs))

    def _kept(self, one: Complete) -> torch.Tensor:
        """Indices of the kept video tokens, int64 ``[K]`` ascending, on the device."""
        state, options = one.state, one.state.options
        if options.chosen.merges:
            raise ValueError(NOTHING_TO_MIX)

        def features() -> torch.Tensor:
            encoded = encode_prompt(one.req, one.filled, self._draft.features)
            return encoded.of_videos(state.layout)

        kept = self._chooser.choose(
            state.layout,
            state.scores,
            one.report,
            policy=options.chosen,
            retention=options.retention,
            top_p=options.top_p,
            at_most=options.draft_video_tokens,
            features=features,
        )
        return kept.indices

    def _go_cold(self, one: Complete, error: Exception) -> None:
        """The draft is only an accelerator: the request goes on without it."""
        logger.warning("SPECVLM: request %s has no draft: %s", one.req.rid, error)
        self._draft.kv.free(one.row)
        one.report.cold = str(error) or type(error).__name__
