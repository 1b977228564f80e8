"""Per-request options: ``custom_params={"specvlm": {"retention": 0.25, "policy": "uniform"}}``."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.policies import NEED_GRID, NEED_SCORES, check_policy, check_retention

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequestOptions:
    """Retention and policy of one request, validated.

    Attributes
    ----------
    retention
        Share of the video tokens that the draft KEEPS, in (0, 1].
    policy
        One of `specvlm_sglang.policies.POLICIES`.
    """

    retention: float
    policy: str

    def __post_init__(self) -> None:
        check_retention(self.retention, "retention")
        check_policy(self.policy, "policy")

    @property
    def needs_scores(self) -> bool:
        """Whether the policy reads attention scores."""
        return self.policy in NEED_SCORES

    @property
    def needs_grid(self) -> bool:
        """Whether the policy spaces tokens over frames and areas."""
        return self.policy in NEED_GRID


def parse_options(custom_params: Any, config: SpecVLMConfig) -> RequestOptions:
    """Return the options that a request's ``custom_params`` ask for.

    Raises
    ------
    ValueError
        Something else than an object with ``retention`` and ``policy``, or a value out of range.
    """
    given = (custom_params or {}).get("specvlm") if isinstance(custom_params, dict) else None
    if given is None:
        return RequestOptions(config.retention, config.policy)
    if not isinstance(given, dict):
        raise ValueError(f"custom_params.specvlm={given!r} must be an object")
    unknown = sorted(set(given) - {"retention", "policy"})
    if unknown:
        raise ValueError(
            f"custom_params.specvlm has no field {unknown[0]!r}; it takes retention and policy"
        )
    return RequestOptions(
        given.get("retention", config.retention), given.get("policy", config.policy)
    )


def options_of(req: Any, config: SpecVLMConfig) -> RequestOptions:
    """Return the options of SGLang's ``Req``, parsed at their first use.

    They were validated when the request arrived; should one slip through, the server's own
    options serve it.
    """
    cached: RequestOptions | None = getattr(req, "specvlm_options", None)
    if cached is None:
        try:
            cached = parse_options(req.sampling_params.custom_params, config)
        except ValueError as error:
            logger.warning("SPECVLM: request %s: %s; the defaults are used", req.rid, error)
            cached = RequestOptions(config.retention, config.policy)
        req.specvlm_options = cached
    return cached
