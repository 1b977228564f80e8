"""What a user can see of SpecVLM: response fields, server totals, Prometheus metrics."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Totals:
    """Counts since the server started, of this scheduler process."""

    requests: int = 0
    video_requests: int = 0
    video_tokens: int = 0
    kept_video_tokens: int = 0
    cold_at_prefill: int = 0
    went_cold: int = 0
    score_fallbacks: int = 0
    scoring_seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the counts by name."""
        return asdict(self)


@dataclass
class RequestReport:
    """What SpecVLM did for one request; ``meta_info.specvlm`` of its response.

    Attributes
    ----------
    video_tokens, kept
        N and K.
    policy
        The pruning policy.
    cold
        Why the request has no draft, or None.
    fallback
        Why another policy was used than the one asked for, or None.
    scoring_seconds
        Wall time of the scores (on a GPU: of their launch).
    """

    video_tokens: int
    kept: int
    policy: str
    cold: str | None = None
    fallback: str | None = None
    scoring_seconds: float = field(default=0.0)

    def finish(self, totals: Totals) -> RequestReport:
        """Add this request to ``totals``."""
        totals.requests += 1
        if self.video_tokens:
            totals.video_requests += 1
            totals.video_tokens += self.video_tokens
            totals.kept_video_tokens += self.kept
        totals.cold_at_prefill += self.cold is not None
        totals.score_fallbacks += self.fallback is not None
        totals.scoring_seconds += self.scoring_seconds
        return self

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return {
            "video_tokens": self.video_tokens,
            "kept_video_tokens": self.kept,
            "policy": self.policy,
            "cold": self.cold,
            "fallback": self.fallback,
            "scoring_seconds": round(self.scoring_seconds, 6),
        }
