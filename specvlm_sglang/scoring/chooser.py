"""Which video tokens a request's draft keeps: scored, selected, and the same on every rank."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from sglang.srt.runtime_context import get_parallel

from specvlm_sglang.copies import LateFlag
from specvlm_sglang.host.ranks import agree
from specvlm_sglang.policies import Policy
from specvlm_sglang.pruning.layout import VideoLayout
from specvlm_sglang.pruning.merging import merge
from specvlm_sglang.pruning.selection import Selection, select_in_layout
from specvlm_sglang.report.detail import add_selection
from specvlm_sglang.report.observer import RequestReport
from specvlm_sglang.report.phases import PhaseClock
from specvlm_sglang.scoring.running import RunningScores
from specvlm_sglang.scoring.scorer import Scorer


class Kept(NamedTuple):
    """What a draft reads of a prompt's videos.

    Attributes
    ----------
    indices
        int64 ``[K]`` ascending, on the device.
    features
        ``[K, d]``, what is read in place of the kept tokens' own features; None where nothing is.
    """

    indices: torch.Tensor
    features: torch.Tensor | None = None


class Chooser:
    """Scores a video where its policy asks for it, and selects.

    Parameters
    ----------
    scorer
        Of the target.
    phases
        Counts the time of both.
    device
        Where the selection is to be.
    """

    def __init__(self, scorer: Scorer, phases: PhaseClock, device: torch.device | str) -> None:
        self._scorer = scorer
        self._phases = phases
        self._device = device

    def choose(
        self,
        layout: VideoLayout,
        running: RunningScores,
        report: RequestReport,
        *,
        policy: Policy,
        retention: float,
        top_p: float,
        at_most: int | None,
        features: Callable[[], torch.Tensor],
    ) -> Kept:
        """Return the kept video tokens.

        Whatever fails on one rank fails on all: they meet here in the same collectives.

        Parameters
        ----------
        layout, running
            Its prompt's, and the sums of its scores.
        report
            Told how it went.
        policy, retention, top_p, at_most
            The request's.
        features
            The draft's vision features ``[N, d]``; called where they are wanted only.
        """
        is_scored = policy.needs_scores and layout.query_rows > 0
        if policy.needs_scores and not is_scored:
            report.fallback = "no text after the video"
        means: dict[str, torch.Tensor] = {}
        selection, failure, vectors = None, None, None
        if is_scored:
            started = time.perf_counter()
            with self._phases("scoring"):
                try:
                    self._scorer.check(running, layout)
                except Exception as error:
                    failure = error
                means = self._scorer.means(running, layout)
            report.scoring_seconds = running.seconds + time.perf_counter() - started
        with self._phases("selection"):
            try:
                vectors = features() if policy.needs_features else None
                selection = select_in_layout(
                    **(means or self._no_scores(layout, policy)),
                    layout=layout,
                    policy=policy,
                    retention=retention,
                    top_p=top_p,
                    at_most=at_most,
                    features=vectors,
                )
            except Exception as error:
                failure = failure or error
        selection = _agreed(selection, failure)
        if report.fallback is None:
            report.late_fallback = LateFlag(selection.fallback)
            report.ranks_by_attention = policy.needs_scores
        if report.detail is not None:
            add_selection(report.detail, means.get("scores"), selection)
        if not policy.merges or vectors is None:
            return Kept(selection.indices)
        with self._phases("selection"):
            return Kept(selection.indices, merge(vectors, selection.indices))

    def _no_scores(self, layout: VideoLayout, policy: Policy) -> dict[str, torch.Tensor]:
        nothing = torch.zeros(layout.video_tokens, dtype=torch.float32, device=self._device)
        more = {"layer_scores": nothing[None], "last_row_scores": nothing}
        return {"scores": nothing} | {k: v for k, v in more.items() if k in policy.needs}


def _agreed(selection: Selection | None, failure: Exception | None) -> Selection:
    """One selection on all ranks, or an error on all of them."""
    parallel = get_parallel()
    if parallel.tp_size > 1:
        failure = agree(parallel.tp_group, failure)
    if failure is not None:
        raise failure
    assert selection is not None
    if parallel.tp_size > 1:
        # Scores may differ in their last bit between ranks; the draft's shards must not part.
        parallel.tp_group.broadcast(selection.indices, src=0)
    return selection
