"""What SPECVLM knows of one request: one object, on SGLang's ``Req`` as ``specvlm``.

A request's own options come as ``custom_params={"specvlm": {"retention": 0.25, ...}}``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.models import ModelFamily
from specvlm_sglang.policies import ATTENTION, Policy, check_retention, check_share, check_tokens
from specvlm_sglang.pruning.budgets import kept_tokens
from specvlm_sglang.pruning.layout import VideoLayout, find_video, unpruned
from specvlm_sglang.pruning.registry import check_policy, find_policy
from specvlm_sglang.report.detail import start_detail
from specvlm_sglang.report.entries import RoundEntries
from specvlm_sglang.report.observer import CUSTOM_PROCESSOR, NO_ANSWER, RequestReport
from specvlm_sglang.scoring.running import RunningScores

logger = logging.getLogger(__name__)

_FIELDS = ("retention", "policy", "top_p", "draft_video_tokens")
"""Those with a default among the server's settings."""
MANY_ROUNDS, HARDLY = 32, 0.1
"""A draft that had so many rounds, with fewer right drafts than this in each, is not worth more."""


@dataclass(frozen=True)
class RequestOptions:
    """Retention, policy and Stage I's share of one request, validated.

    Attributes
    ----------
    retention
        Share of the video tokens that the draft KEEPS, in (0, 1].
    policy
        One of `specvlm_sglang.pruning.registry.policy_names`.
    top_p
        Share of the video's attention mass that Stage I retains, in [0, 1].
    detail
        Whether the response has scores, kept tokens and verify rounds
        (`specvlm_sglang.report.detail`).
    draft_video_tokens
        The draft reads at most so many video tokens, whatever ``retention`` says; None: no limit.
    """

    retention: float
    policy: str
    top_p: float
    detail: bool = False
    draft_video_tokens: int | None = None

    def __post_init__(self) -> None:
        check_retention(self.retention, "retention")
        check_policy(self.policy, "policy")
        check_share(self.top_p, "top_p")
        check_tokens(self.draft_video_tokens, "draft_video_tokens")
        if not isinstance(self.detail, bool):
            raise ValueError(f"detail={self.detail!r} must be true or false")

    @property
    def chosen(self) -> Policy:
        """The policy of that name."""
        return find_policy(self.policy)


def parse_options(custom_params: Any, config: SpecVLMConfig) -> RequestOptions:
    """Return the options that a request's ``custom_params`` ask for.

    Raises
    ------
    ValueError
        Something else than an object with ``retention``, ``policy``, ``top_p``, ``detail`` and
        ``draft_video_tokens``, or a value out of range.
    """
    given = (custom_params or {}).get("specvlm") if isinstance(custom_params, dict) else None
    if given is None:
        return RequestOptions(**{name: getattr(config, name) for name in _FIELDS})
    if not isinstance(given, dict):
        raise ValueError(f"custom_params.specvlm={given!r} must be an object")
    known = ("retention", "policy", "top_p", "detail", "draft_video_tokens")
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"custom_params.specvlm has no field {unknown[0]!r}; it takes {', '.join(known)}"
        )
    chosen = {name: given.get(name, getattr(config, name)) for name in _FIELDS}
    return RequestOptions(**chosen, detail=given.get("detail", False))


@dataclass(eq=False)
class RequestState:
    """One request as SPECVLM sees it, from its first prefix match to its end.

    Attributes
    ----------
    options
        Parsed once.
    layout
        Where the prompt's video is, and which rows ask about it.
    kept_video_tokens
        K, known before anything is computed.
    refusal
        Why the request gets no draft, or None.
    scores
        Sums of the query rows that were prefilled so far; empty before the first and after use.
    report
        What will be shown of the prefill that is complete, or None.
    filled
        Tokens that the target has prefilled, where the draft is yet to begin; None where it has
        begun, never will, or there is more to prefill.
    behind
        Tokens of the answer that the draft, or the prefill where it has not begun, has not seen:
        the rounds that it rested.
    drafted_rounds
        Rounds that its draft took part in, of the newest prefill.
    rounds
        Where verify rounds say what there is to say of them; None before the first prefill.
    arrived
        Whether it was decided, before its prefill, if a draft would pay.
    begins_anyway
        Its draft would not pay and begins, to be measured.
    """

    options: RequestOptions
    layout: VideoLayout
    kept_video_tokens: int
    refusal: str | None = None
    scores: RunningScores = field(default_factory=RunningScores)
    report: RequestReport | None = None
    filled: int | None = None
    behind: int = 0
    drafted_rounds: int = 0
    rounds: RoundEntries | None = None
    arrived: bool = False
    begins_anyway: bool = False

    @property
    def prunes(self) -> bool:
        """Whether the draft sees less than the whole video."""
        return self.kept_video_tokens < self.layout.video_tokens

    @property
    def needs_scores(self) -> bool:
        """Whether the target's attention decides what the draft sees."""
        return self.prunes and self.refusal is None and self.options.chosen.needs_scores

    def rows_to_score(self, start: int, stop: int) -> range:
        """Query rows that a forward pass over positions ``start`` to ``stop`` shall score.

        A pass that begins with the first of them begins anew: after a retraction, or where the
        radix cache gave less than before, older rows are of no use.
        """
        wanted = self.layout.query_rows_within(start, stop)
        if not wanted or not self.needs_scores:
            return range(0)
        if wanted.start == self.layout.query_start:
            self.scores = RunningScores(kinds=self.options.chosen.needs & ATTENTION)
        return wanted

    def begin_rows_at(self, start: int) -> None:
        """Score with rows from ``start`` on: those before it are computed, and stay so."""
        if start > self.layout.query_start:
            stop = self.layout.query_stop
            self.layout = replace(self.layout, query_start=min(start, stop))

    def prefilled(self, req: Any) -> None:
        """The target has prefilled the whole of SGLang's ``req``: begin a report."""
        layout, detail = self.layout, self.options.detail
        filled = len(req.full_untruncated_fill_ids)
        cold = self.refusal
        if cold is None and not detail:
            cold = _why_it_would_not_pay(req, filled)
        self.report = RequestReport(
            layout.video_tokens, self.kept_video_tokens, self.options.policy, cold=cold
        )
        if detail:
            self.report.detail = start_detail(layout)
        self.report.pending = cold is None
        self.filled = filled if self.report.pending else None
        self.behind = self.drafted_rounds = 0
        if self.rounds is not None:
            self.rounds.accepted = 0
        else:
            self.rounds = RoundEntries(req, notes_origins=detail)

    @property
    def keeps_missing(self) -> bool:
        """Whether its draft had many rounds by now, and hardly a draft of them was right."""
        accepted = 0 if self.rounds is None else self.rounds.accepted
        return self.drafted_rounds >= MANY_ROUNDS and accepted < HARDLY * self.drafted_rounds

    def begun(self) -> None:
        """The draft has what it needs of the prefill, or there is none."""
        self.filled = None
        self.behind = 0
        self.scores = RunningScores()
        if self.report is not None:
            self.report.pending = False


def tokens_to_come(req: Any, filled: int) -> int | None:
    """What an answer has left at most after the token that follows ``filled``; None: no limit."""
    limit: int | None = req.sampling_params.max_new_tokens
    return None if limit is None else max(0, limit - (filled - len(req.origin_input_ids) + 1))


def tokens_left(req: Any) -> int | None:
    """How many tokens an answer may get beyond those that the host knows of; None: no limit."""
    limit: int | None = req.sampling_params.max_new_tokens
    return None if limit is None else max(0, limit - len(req.output_ids))


def would_not_pay(lengths: Sequence[int], left: int | None) -> str:
    """What `cold` says of an answer that may get so many tokens, ``left`` at most."""
    likely = round(sum(lengths) / len(lengths))
    if left is not None and likely >= left:
        return f"would not pay: {left} tokens to come at most"
    return f"would not pay: about {likely} tokens to come"


def _why_it_would_not_pay(req: Any, filled: int) -> str | None:
    """Why no draft can be worth its prefill: what plain decoding needs one pass for at most."""
    left = tokens_to_come(req, filled)
    return None if left is None or left > 1 else would_not_pay([left], left)


@dataclass(frozen=True, eq=False)
class Complete:
    """A request of a batch whose prompt is complete, and whose draft may be yet to begin.

    Attributes
    ----------
    index
        Its place in the batch.
    req
        SGLang's ``Req``.
    state
        Ours.
    filled
        Tokens that the target has processed: the prompt, and what was generated before a
        retraction, or while the draft rested.
    """

    index: int
    req: Any
    state: RequestState
    filled: int

    @property
    def row(self) -> int:
        """Its row of the target's request table, ``req_pool_idx``."""
        return int(self.req.kv.req_pool_idx)

    @property
    def report(self) -> RequestReport:
        """What will be shown of this prefill."""
        assert self.state.report is not None
        return self.state.report

    def publish(self, report: dict[str, Any]) -> None:
        """Show ``report`` with the first token of the next round."""
        if self.state.rounds is not None:
            self.state.rounds.show(report)

    def newest(self, output: Any) -> torch.Tensor:
        """What the target sampled, ``[1]`` of the prefill's ``next_token_ids``."""
        found: torch.Tensor = output.next_token_ids[self.index : self.index + 1]
        return found


class Requests:
    """Finds the `RequestState` of SGLang's requests; nothing else writes it to them.

    Parameters
    ----------
    config
        The server's settings.
    family
        The target's.
    """

    def __init__(self, config: SpecVLMConfig, family: ModelFamily) -> None:
        self._config = config
        self._family = family

    def of(self, req: Any) -> RequestState:
        """Return the state of SGLang's ``Req``, built at its first use."""
        state: RequestState | None = getattr(req, "specvlm", None)
        if state is None or state.layout.length != len(req.origin_input_ids):
            state = req.specvlm = self._read(req)
        return state

    def complete(self, reqs: Sequence[Any]) -> list[Complete]:
        """Requests of a batch whose prompt is complete now, and that want an answer."""
        found = []
        for index, req in enumerate(reqs):
            if req.is_prefill_only or req.extend_end != len(req.full_untruncated_fill_ids):
                continue
            state = self.of(req)
            state.prefilled(req)
            found.append(Complete(index, req, state, len(req.full_untruncated_fill_ids)))
        return found

    def due(self, reqs: Sequence[Any]) -> list[Complete]:
        """Requests of a batch whose draft is yet to begin, and that still want an answer."""
        found = []
        for index, req in enumerate(reqs):
            state: RequestState | None = getattr(req, "specvlm", None)
            if state is None or state.filled is None or req.finished() or req.is_retracted:
                continue
            found.append(Complete(index, req, state, state.filled + state.behind))
        return found

    def behind(self, reqs: Sequence[Any], lengths: torch.Tensor | None) -> list[Complete]:
        """Requests of a batch whose draft has begun and missed tokens.

        ``lengths`` are SGLang's, on the host; None only where no draft rests.
        """
        found = []
        for index, req in enumerate(reqs):
            state = self.of(req)
            if state.behind and state.filled is None and not (req.finished() or req.is_retracted):
                assert lengths is not None
                found.append(Complete(index, req, state, int(lengths[index])))
        return found

    def drafted(self, reqs: Sequence[Any]) -> list[Any]:
        """A round is drafted for these requests; returns those whose draft keeps missing."""
        missing = []
        for req in reqs:
            state = self.of(req)
            state.drafted_rounds += 1
            if state.keeps_missing and not (req.finished() or req.is_retracted):
                missing.append(req)
        return missing

    def rested(self, reqs: Sequence[Any]) -> None:
        """Each of these requests gets a token that its draft does not see."""
        for req in reqs:
            self.of(req).behind += 1

    def _read(self, req: Any) -> RequestState:
        options, refusal = self._options(req), None
        if req.is_prefill_only:
            refusal = NO_ANSWER
        elif req.custom_logit_processor is not None:
            refusal = CUSTOM_PROCESSOR
        try:
            layout = layout_of(req, self._config.max_query_rows, self._family)
        except Exception as error:
            # A processor's mistake must not stop the scheduler; the target answers as always.
            logger.warning("SPECVLM: request %s has no draft: %r", req.rid, error)
            layout = unpruned(len(req.origin_input_ids))
            refusal = str(error) or type(error).__name__
        if refusal is None and not options.detail:
            # Its scores would be for nothing too.
            refusal = _why_it_would_not_pay(req, len(req.origin_input_ids))
        kept = kept_tokens(
            layout.video_lengths, options.chosen, options.retention, options.draft_video_tokens
        )
        return RequestState(options, layout, kept, refusal)

    def _options(self, req: Any) -> RequestOptions:
        """They were validated when the request came; one that slips through gets the server's."""
        try:
            return parse_options(req.sampling_params.custom_params, self._config)
        except ValueError as error:
            logger.warning("SPECVLM: request %s: %s; the defaults are used", req.rid, error)
            return parse_options(None, self._config)


def layout_of(req: Any, max_query_rows: int, family: ModelFamily) -> VideoLayout:
    """Return where the video of SGLang's ``Req`` is.

    Raises
    ------
    ValueError
        Spans that do not fit the prompt.
    """
    items = [] if req.multimodal_inputs is None else req.multimodal_inputs.mm_items
    videos = [video for item in items if item.is_video() for video in family.videos(item)]
    return find_video(
        len(req.origin_input_ids),
        [list(video.spans) for video in videos],
        max_query_rows,
        [video.grid for video in videos],
        max(videos, key=lambda video: video.spans[-1]).trailing if videos else 0,
        [video.seconds_per_frame for video in videos],
    )
