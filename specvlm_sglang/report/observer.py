"""What a user can see of SpecVLM: response fields, server totals, Prometheus metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from specvlm_sglang.copies import LateFlag

logger = logging.getLogger(__name__)

NO_ATTENTION = "the scores hold no attention to the video"
"""Why another policy was used although scores were taken."""
NO_CHANGE = "the video has nothing that the policy ranks by"
"""The same of a policy that reads no attention."""
POOL_FULL = "the draft's KV cache is full"
"""Why a request is cold that the draft's pool could not take."""

CUSTOM_PROCESSOR = "custom_logit_processor is applied token by token"
"""Why a request is cold whose logits any Python code may change."""
NO_ANSWER = "no token was asked for"
"""Why nothing is drafted for a request that only wants its prompt computed."""


@dataclass
class RequestReport:
    """What SpecVLM did for one request; ``meta_info["specvlm"]`` of its response.

    Attributes
    ----------
    video_tokens, kept_video_tokens
        N and K.
    policy
        The pruning policy.
    cold
        Why the request has no draft, or None.
    fallback
        Why another policy was used than the one asked for, or None.
    scoring_seconds
        Wall time of the scores (on a GPU: of their launch).
    detail
        What `specvlm_sglang.report.detail` collects for a request that asks for it, or None.
    late_fallback
        Whether there will be a ``fallback``, where the device has yet to say; not shown.
    ranks_by_attention
        Whether that would be for want of attention; not shown.
    pending
        Whether the draft is yet to begin, so that ``cold`` and ``fallback`` are not known.
    """

    video_tokens: int
    kept_video_tokens: int
    policy: str
    cold: str | None = None
    fallback: str | None = None
    scoring_seconds: float = 0.0
    detail: dict[str, Any] | None = None
    late_fallback: LateFlag | None = field(default=None, repr=False)
    ranks_by_attention: bool = field(default=True, repr=False)
    pending: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values, ``detail`` and ``pending`` only where set."""
        hidden = {"late_fallback", "ranks_by_attention"}
        hidden |= {"detail"} if self.detail is None else set()
        hidden |= set() if self.pending else {"pending"}
        names = [entry.name for entry in fields(self) if entry.name not in hidden]
        return {name: getattr(self, name) for name in names}


class LateReport(dict[str, Any]):
    """A shown report whose ``fallback`` is filled in when SGLang copies it.

    SGLang copies what belongs to a request out of the pass's results after waiting for the pass to
    end; by then the flag is on the host, and reading it holds nobody up.

    Parameters
    ----------
    values
        From `RequestReport.as_dict`.
    flag
        Whether the scores were of no use.
    on_fallback
        Called if so.
    why
        What ``fallback`` then says.
    """

    def __init__(
        self,
        values: dict[str, Any],
        flag: LateFlag,
        on_fallback: Callable[[], None],
        why: str = NO_ATTENTION,
    ) -> None:
        super().__init__(values)
        self._flag = flag
        self._on_fallback = on_fallback
        self._why = why

    def copy(self) -> dict[str, Any]:
        """The complete report, a plain dict."""
        values = dict(self)
        if self._flag.value():
            values["fallback"] = self._why
            self._on_fallback()
        return values


@dataclass
class Totals:
    """Counts since the server started, of this scheduler process.

    Attributes
    ----------
    requests, video_requests
        Prompts completed, and those with a video.
    video_tokens, kept_video_tokens
        Sums of N, and of K where the draft was prefilled.
    cold_at_prefill, went_cold
        Requests that never had a draft, and that lost it while running.
    score_fallbacks
        Requests whose policy fell back to uniform spacing.
    audited, audit_mismatches
        Answers compared with a replay (``--specvlm-audit``), and those that differed.
    """

    requests: int = 0
    video_requests: int = 0
    video_tokens: int = 0
    kept_video_tokens: int = 0
    cold_at_prefill: int = 0
    went_cold: int = 0
    score_fallbacks: int = 0
    audited: int = 0
    audit_mismatches: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the counts by name."""
        return asdict(self)


class Observer:
    """Counts what happens; with metrics enabled also for Prometheus, under ``specvlm_``.

    Parameters
    ----------
    prometheus
        Whether SGLang serves ``/metrics`` (``--enable-metrics``). It aggregates the metrics of
        all its processes, so they are simply created here.
    """

    def __init__(self, *, prometheus: bool) -> None:
        self.totals = Totals()
        self._metrics = _PrometheusMetrics() if prometheus else None
        self._failed = False

    def _tell(self, call: Callable[[_PrometheusMetrics], object]) -> None:
        """Let ``call`` count for Prometheus: its files may be gone, or their disk full."""
        if self._metrics is None:
            return
        try:
            call(self._metrics)
        except Exception as error:
            if not self._failed:
                logger.warning("SPECVLM: Prometheus metrics cannot be counted: %r", error)
            self._failed = True

    def finished_prefill(self, report: RequestReport) -> None:
        """Count one completed prompt; as cold where it is known by now."""
        totals = self.totals
        totals.requests += 1
        totals.video_requests += report.video_tokens > 0
        totals.video_tokens += report.video_tokens
        self._tell(lambda metrics: metrics.finished_prefill(report))
        if report.cold is not None:
            self._never_drafts()

    def began(self, report: RequestReport) -> None:
        """Count a request whose draft began, or failed to."""
        if report.fallback is not None:
            self.fell_back()
        if report.cold is not None:
            self._never_drafts()
            return
        self.totals.kept_video_tokens += report.kept_video_tokens
        self._tell(lambda metrics: metrics.began(report))

    def _never_drafts(self) -> None:
        self.totals.cold_at_prefill += 1
        self._tell(lambda metrics: metrics.cold.labels(when="prefill").inc())

    def fell_back(self) -> None:
        """Count a request whose scores were of no use."""
        self.totals.score_fallbacks += 1
        self._tell(lambda metrics: metrics.fallbacks.inc())

    def went_cold(self, requests: int) -> None:
        """Count requests that lost their draft while running."""
        self.totals.went_cold += requests
        self._tell(lambda metrics: metrics.cold.labels(when="running").inc(requests))

    def audited(self, mismatch: bool) -> None:
        """Count an answer that was compared with its replay."""
        self.totals.audited += 1
        self.totals.audit_mismatches += mismatch
        self._tell(lambda metrics: metrics.audited.inc())
        self._tell(lambda metrics: metrics.audit_mismatches.inc(mismatch))

    def steps(self, steps: int) -> None:
        """Note how many steps the next round drafts."""
        self._tell(lambda metrics: metrics.steps.set(steps))

    def gain(self, expected: float | None, measured: float | None) -> None:
        """Note the gain over plain decoding: of the present steps, and of the rounds so far."""
        self._tell(lambda metrics: metrics.expected_gain.set(expected or 1.0))
        self._tell(lambda metrics: metrics.measured_gain.set(measured or 1.0))

    def draft_kv(self, in_use: int, capacity: int) -> None:
        """Note how full the draft's KV cache is."""
        self._tell(lambda metrics: metrics.kv_in_use.set(in_use))
        self._tell(lambda metrics: metrics.kv_capacity.set(capacity))


class _PrometheusMetrics:
    def __init__(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self.requests = Counter(
            "specvlm_requests_total", "Prompts completed, by pruning policy.", ["policy"]
        )
        self.video_tokens = Counter(
            "specvlm_video_tokens_total", "Video tokens of the prompts completed."
        )
        self.kept = Counter(
            "specvlm_kept_video_tokens_total", "Video tokens that the draft was prefilled with."
        )
        self.cold = Counter(
            "specvlm_cold_requests_total",
            "Requests decoded without a draft: from their prefill, or from some point on.",
            ["when"],
        )
        self.fallbacks = Counter(
            "specvlm_score_fallbacks_total",
            "Requests pruned uniformly because no scores could be taken.",
        )
        self.scoring = Histogram(
            "specvlm_scoring_seconds",
            "Wall time of scoring one video.",
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        )
        self.audited = Counter(
            "specvlm_audited_total", "Answers compared with a replay without a draft."
        )
        self.audit_mismatches = Counter(
            "specvlm_audit_mismatches_total", "Audited answers that differed from their replay."
        )
        self.kv_in_use = Gauge(
            "specvlm_draft_kv_tokens_in_use",
            "Slots of the draft's KV cache in use.",
            multiprocess_mode="mostrecent",
        )
        self.steps = Gauge(
            "specvlm_draft_steps",
            "Draft steps of the newest round (--speculative-adaptive).",
            multiprocess_mode="mostrecent",
        )
        self.expected_gain = Gauge(
            "specvlm_expected_gain",
            "Tokens per second over plain decoding that the present steps promise; 1: not known.",
            multiprocess_mode="mostrecent",
        )
        self.measured_gain = Gauge(
            "specvlm_measured_gain",
            "Tokens per second over plain decoding in the rounds so far; 1: not known.",
            multiprocess_mode="mostrecent",
        )
        self.kv_capacity = Gauge(
            "specvlm_draft_kv_tokens",
            "Slots of the draft's KV cache.",
            multiprocess_mode="mostrecent",
        )

    def finished_prefill(self, report: RequestReport) -> None:
        self.requests.labels(policy=report.policy).inc()
        self.video_tokens.inc(report.video_tokens)

    def began(self, report: RequestReport) -> None:
        self.kept.inc(report.kept_video_tokens)
        if report.scoring_seconds > 0:
            self.scoring.observe(report.scoring_seconds)
