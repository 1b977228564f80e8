"""A scorer and a selector make a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from specvlm_sglang.policies import Inputs, Policy, Scorer, Selector
from specvlm_sglang.pruning.checks import checked_kept
from specvlm_sglang.pruning.spacing import evenly

if TYPE_CHECKING:
    from specvlm_sglang.policies import Kept

_SPACES_ITSELF = ("two-stage", "two-stage-grid")
"""Selectors of the project that space evenly where nothing is worth anything."""


def compose(scorer: Scorer, selector: Selector, name: str | None = None) -> Policy:
    """Return the policy ``scorer/selector``, perhaps under a name of its own.

    It returns the kept tokens, ascending; which of them were kept for their worth, bool
    ``[budget]``; and, where that is not known from the attention already, whether the worth was no
    use (all 0, negative or not finite), so that evenly spaced tokens are kept: a bool scalar.
    """

    def choose(inputs: Inputs, budget: int) -> Kept:
        worth = scorer.score(inputs)
        if scorer.checks:
            _check_worth(scorer, worth, inputs)
        useless = None
        if worth is not inputs.scores:
            worth, usable = usable_scores(worth)
            useless = ~usable
        kept = _selected(selector, worth, inputs, budget)
        if isinstance(kept, torch.Tensor):
            kept = kept, torch.ones(budget, dtype=torch.bool, device=inputs.device)
        indices, ranked = kept[0], kept[1]
        if selector.name not in _SPACES_ITSELF:
            has_mass = (worth > 0).any()
            if "scores" in selector.needs and worth is not inputs.scores:
                has_mass = has_mass & (inputs.scores > 0).any()
            indices = torch.where(has_mass, indices, evenly(inputs.n, budget, inputs.device))
            ranked = ranked & has_mass
        if scorer.name == "equal":
            ranked = torch.zeros_like(ranked)
        return (indices, ranked) if useless is None else (indices, ranked, useless)

    needs = scorer.needs | selector.needs
    return Policy(name or f"{scorer.name}/{selector.name}", choose, needs)


def _selected(selector: Selector, worth: torch.Tensor, inputs: Inputs, budget: int) -> Kept:
    if not selector.checks:
        return selector.select(worth, inputs, budget)
    if budget == inputs.n:
        return torch.arange(budget, device=inputs.device)
    kept = selector.select(worth, inputs, budget)
    return checked_kept(f"selector {selector.name!r}", kept, inputs.n, budget)


def usable_scores(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 scores, all zero unless they can be ranked, and whether they can (a bool scalar)."""
    # False for NaN; infinity passes the first test only.
    usable = ((scores >= 0) & torch.isfinite(scores)).all() & (scores > 0).any()
    return torch.where(usable, scores, torch.zeros_like(scores)).float(), usable


def _check_worth(scorer: Scorer, worth: object, inputs: Inputs) -> None:
    if not isinstance(worth, torch.Tensor) or not worth.is_floating_point():
        kind = worth.dtype if isinstance(worth, torch.Tensor) else type(worth).__name__
        raise ValueError(f"scorer {scorer.name!r} returned {kind}, not a float32 tensor")
    if worth.shape != (inputs.n,):
        raise ValueError(
            f"scorer {scorer.name!r} returned shape {list(worth.shape)}, not [{inputs.n}]"
        )
