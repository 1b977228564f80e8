"""A round's drafts, whichever model they come from: proposed, or replaced where there are none."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from sglang.srt.runtime_context import get_parallel
from sglang.srt.speculative.eagle_info import EagleDraftInput
from sglang.srt.speculative.eagle_worker_common import build_eagle_verify_input
from sglang.srt.speculative.standalone_worker_v2 import StandaloneDraftWorker

from specvlm_sglang.draft.features import DraftFeatures
from specvlm_sglang.draft.undrafted import Undrafted
from specvlm_sglang.host import batch_view
from specvlm_sglang.host.ranks import PARTED, Meeting
from specvlm_sglang.models import ModelFamily
from specvlm_sglang.report.observer import Observer
from specvlm_sglang.report.phases import PhaseClock

logger = logging.getLogger(__name__)


class DraftRows(Protocol):
    """What a draft holds of each row of the target's request table."""

    @property
    def slots_in_use(self) -> int:
        """KV slots of the draft's own that rows read now."""

    @property
    def capacity(self) -> int:
        """KV slots of the draft's own."""

    def is_warm(self, row: int) -> bool:
        """Whether ``row`` has a draft."""

    def free(self, row: int) -> None:
        """Let go of what ``row`` holds; it is cold from now on. Idempotent, from any stream."""


class DraftRounds(StandaloneDraftWorker):
    """SGLang's standalone draft worker, some of whose requests have no draft.

    A subclass proposes tokens and says when; losing a draft never ends a request.
    """

    kv: DraftRows
    """From ``alloc_memory_pool`` on."""
    family: ModelFamily
    """Of the model that drafts."""
    features: DraftFeatures
    """Vision features of the model that drafts."""

    def begin_rounds(self, observer: Observer, phases: PhaseClock) -> None:
        """Called once, at construction."""
        self.phases = phases
        self._observer = observer
        self._undrafted_by_steps: dict[int, Undrafted] = {}
        self._meeting = Meeting(get_parallel().tp_group, self.device)

    @property
    def _undrafted(self) -> Undrafted:
        """What stands for drafts of the steps of this round."""
        steps = self.speculative_num_steps
        if steps not in self._undrafted_by_steps:
            self._undrafted_by_steps[steps] = Undrafted(
                topk=self.topk,
                steps=steps,
                nodes=self.speculative_num_draft_tokens,
                device=self.device,
            )
        return self._undrafted_by_steps[steps]

    def note_kv(self) -> None:
        """Tell the metrics how full the draft's KV cache is."""
        self._observer.draft_kv(self.kv.slots_in_use, self.kv.capacity)

    def state(self) -> dict[str, Any]:
        """What ``/server_info`` shows of the draft's KV cache."""
        raise NotImplementedError

    def undrafted(self, newest_tokens: torch.Tensor) -> EagleDraftInput:
        """What a prefill hands on, ``[batch]`` newest tokens and no drafts.

        Drafts are proposed when they begin, at the head of a round.
        """
        drafted = EagleDraftInput(
            bonus_tokens=newest_tokens, num_tokens_per_req=1, num_tokens_for_logprob_per_req=1
        )
        self._undrafted.hand_on(drafted, newest_tokens.shape[0])
        return drafted

    def draft(self, batch: Any, *, with_topology: bool = False) -> Any:
        """Draft a chain or tree on the draft's lengths; returns the target's verify input."""
        with self.phases("draft"):
            return self._draft(batch)

    def _draft(self, batch: Any) -> Any:
        self.reserve(batch)
        drafted = None
        if self.has_drafts(batch):
            try:
                drafted = self._draft_tokens(batch)
            except Exception as error:
                self._lose_drafts(batch, error)
        if drafted is None:
            drafted = self._undrafted.drafts(len(batch.reqs))
        parents, scores_index, draft_tokens, draft_probs = drafted
        return build_eagle_verify_input(
            batch,
            batch.spec_info,
            parents,
            scores_index,
            draft_tokens,
            draft_probs,
            target_worker=self.target_worker,
            topk=self.topk,
            num_steps=self.speculative_num_steps,
            num_draft_tokens=self.speculative_num_draft_tokens,
            tree_mask_mode=self.tree_mask_mode,
            device=self.device,
        )

    def has_drafts(self, batch: Any) -> bool:
        """Whether a request of the batch has a draft; an idle batch keeps all ranks in step."""
        return batch.forward_mode.is_idle() or any(self.warm(batch))

    def warm(self, batch: Any) -> list[bool]:
        """Which requests of the batch have a draft."""
        return [self.kv.is_warm(row) for row in batch_view.rows_of(batch)]

    def most_gain(self, batch: Any) -> float:
        """Tokens per second over plain decoding's that drafting for ``batch`` cannot exceed."""
        return math.inf

    def _draft_tokens(self, batch: Any) -> Any:
        """Parents, score indices, tokens and probabilities, as SGLang's ``draft_forward``."""
        raise NotImplementedError

    def reserve(self, batch: Any) -> None:
        """Give the rows of ``batch`` the slots of the round; who gets none loses its draft."""
        raise NotImplementedError

    def rests(self, batch: Any) -> bool:
        """Whether the draft sees nothing of this round and catches up later."""
        raise NotImplementedError

    def drop(self, reqs: Sequence[Any]) -> None:
        """Free the drafts of these requests: they go on without."""
        for row in (req.kv.req_pool_idx for req in reqs):
            if self.kv.is_warm(row):
                logger.info("SPECVLM: a draft that keeps missing was dropped")
                self.kv.free(row)
                self._observer.went_cold(1)

    def _lose_drafts(self, batch: Any, error: Exception) -> None:
        """A round's pass of the draft failed: its requests go on without.

        Raises
        ------
        RuntimeError
            With tensor parallelism, where it is not known that every rank failed alike: one that
            did not waits for this one, or has gone on with its drafts.
        """
        if not self._meeting.all_failed():
            raise RuntimeError(PARTED) from error
        warm = [row for row in batch_view.rows_of(batch) if self.kv.is_warm(row)]
        logger.warning("SPECVLM: %d requests lost their drafts: %r", len(warm), error)
        for row in warm:
            self.kv.free(row)
        self._observer.went_cold(len(warm))
