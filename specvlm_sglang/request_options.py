"""Per-request options: ``custom_params={"specvlm": {"retention": 0.25, "policy": "uniform"}}``."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.policies import Policy, check_retention, check_share
from specvlm_sglang.pruning.registry import check_policy, find_policy

logger = logging.getLogger(__name__)

_FIELDS = ("retention", "policy", "top_p")
"""Those with a default among the server's settings."""


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
        (`specvlm_sglang.detail`).
    """

    retention: float
    policy: str
    top_p: float
    detail: bool = False

    def __post_init__(self) -> None:
        check_retention(self.retention, "retention")
        check_policy(self.policy, "policy")
        check_share(self.top_p, "top_p")
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
        Something else than an object with ``retention``, ``policy``, ``top_p`` and ``detail``, or
        a value out of range.
    """
    given = (custom_params or {}).get("specvlm") if isinstance(custom_params, dict) else None
    if given is None:
        return RequestOptions(config.retention, config.policy, config.top_p)
    if not isinstance(given, dict):
        raise ValueError(f"custom_params.specvlm={given!r} must be an object")
    known = (*_FIELDS, "detail")
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"custom_params.specvlm has no field {unknown[0]!r}; it takes {', '.join(known)}"
        )
    chosen = {name: given.get(name, getattr(config, name)) for name in _FIELDS}
    return RequestOptions(**chosen, detail=given.get("detail", False))


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
            cached = RequestOptions(config.retention, config.policy, config.top_p)
        req.specvlm_options = cached
    return cached
