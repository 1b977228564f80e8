"""What is compared: a registry of named configurations, the first of them plain decoding."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from specvlm_sglang.policies import check_retention, check_share
from specvlm_sglang.pruning.registry import check_policy, shipped_policies
from specvlm_sglang.tools.errors import ToolError

PLAIN = "plain"
UNPRUNED = "unpruned"
CHAIN, TREE = "chain", "tree"
SELF = "self"
"""A server whose target drafts chains for itself."""
NGRAM = "ngram"
"""SGLang's own: chains of tokens that followed the same words before, without a draft model."""
RETENTIONS = (0.5, 0.25, 0.1, 0.05)
MAIN = "specvlm-0.1"
"""The configuration that the bars are about."""
PAPER = f"{MAIN}-p0.4"
"""The same with the paper's Stage I, which leaves little room for evenly spaced tokens."""


@dataclass(frozen=True)
class Configuration:
    """One way to answer.

    Attributes
    ----------
    name
        As given to ``--configurations``.
    server
        Which server answers: ``plain``, ``ngram``, ``chain``, ``tree`` or ``self``.
    retention, policy
        What each request asks of a SPECVLM server; None for the first two.
    top_p
        The same, where it is not the server's.
    """

    name: str
    server: str
    retention: float | None = None
    policy: str | None = None
    top_p: float | None = None

    @property
    def custom_params(self) -> dict[str, Any] | None:
        """SGLang's request field that sets the three; None where the server is not SPECVLM's."""
        if self.policy is None:
            return None
        given = {"retention": self.retention, "policy": self.policy, "top_p": self.top_p}
        return {"specvlm": {name: value for name, value in given.items() if value is not None}}


def _pruned(
    retention: float, policy: str = "specvlm", shape: str = CHAIN, top_p: float | None = None
) -> Configuration:
    name = f"{policy}-{retention:g}"
    name += "" if top_p is None else f"-p{top_p:g}"
    name += "" if shape == CHAIN else f"-{shape}"
    return Configuration(name, shape, retention, policy, top_p)


REGISTRY: dict[str, Configuration] = {
    configuration.name: configuration
    for configuration in (
        Configuration(PLAIN, PLAIN),
        Configuration(NGRAM, NGRAM),
        Configuration(UNPRUNED, CHAIN, 1.0, "specvlm"),
        *(_pruned(retention) for retention in RETENTIONS),
        Configuration(f"{UNPRUNED}-tree", TREE, 1.0, "specvlm"),
        *(_pruned(retention, shape=shape) for shape in (TREE, SELF) for retention in RETENTIONS),
        *(_pruned(retention, top_p=0.4) for retention in RETENTIONS),
        *(
            _pruned(retention, policy)
            for policy in shipped_policies()
            if policy not in ("specvlm", "none")
            for retention in RETENTIONS
        ),
    )
}
"""Every configuration by name."""


def configuration(name: str) -> Configuration:
    """The configuration ``name``: of the registry, or ``POLICY-RETENTION[-pTOP_P][-tree|-self]``.

    Raises
    ------
    ToolError
        There is none of that name, or a part of it is out of range.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    last = name.rpartition("-")[2]
    shape = last if last in (TREE, SELF) else CHAIN
    try:
        found = re.fullmatch(r"(.+?)-([\d.]+)(?:-p([\d.]+))?", name.removesuffix(f"-{shape}"))
        if found is None:
            raise ValueError("no such form")
        policy, share = found[1], float(found[2])
        top_p = None if found[3] is None else float(found[3])
        check_policy(policy, "policy")
        check_retention(share, "retention")
        check_share(0 if top_p is None else top_p, "top_p")
    except ValueError as error:
        raise ToolError(
            f"--configurations {name!r} must be one of {PLAIN}, {NGRAM}, {UNPRUNED}, "
            f"{UNPRUNED}-tree or POLICY-RETENTION[-pTOP_P][-tree|-self], such as {MAIN} ({error})"
        ) from None
    return _pruned(share, policy, shape, top_p)
