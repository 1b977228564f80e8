"""Which tokens are kept, given their worth: the project's own; `reference.policies` defines each.

Those that keep tokens for their worth return a second tensor beside the indices, which ascend here:
bool ``[budget]``, kept for its worth.
"""

from __future__ import annotations

import torch

from specvlm_sglang.policies import Inputs, selector
from specvlm_sglang.pruning.cover import cover as cover_tokens
from specvlm_sglang.pruning.spacing import Grid, ascending, space_over
from specvlm_sglang.pruning.spread import spread as spread_tokens

InStages = tuple[torch.Tensor, torch.Tensor]


@selector("two-stage")
def two_stage(worth: torch.Tensor, inputs: Inputs, budget: int) -> InStages:
    """Top-P retention, then even spacing over the rest in prompt order (SpecVLM, section 3)."""
    return fill_up(retain_top_p(worth, inputs.top_p, budget), budget, None)


@selector("two-stage-grid", needs={"grid"})
def two_stage_grid(worth: torch.Tensor, inputs: Inputs, budget: int) -> InStages:
    """Top-P retention, then even spacing over frames and over each frame's area."""
    return fill_up(retain_top_p(worth, inputs.top_p, budget), budget, inputs.grid)


@selector("top-k")
def top_k(worth: torch.Tensor, inputs: Inputs, budget: int) -> torch.Tensor:
    """The highest."""
    ranked = torch.argsort(worth, descending=True, stable=True)
    return ranked[:budget].sort().values


@selector("spread", needs={"grid"})
def spread(worth: torch.Tensor, inputs: Inputs, budget: int) -> torch.Tensor:
    """The highest within the box of their neighbours, layer by layer."""
    assert inputs.grid is not None
    return spread_tokens(worth, budget, inputs.grid)


@selector("top-p-spread", needs={"scores", "grid"})
def top_p_spread(worth: torch.Tensor, inputs: Inputs, budget: int) -> InStages:
    """Top-P retention of the attention in at most half the budget, then spread by worth."""
    assert inputs.grid is not None
    stage_one = retain_top_p(inputs.scores, inputs.top_p / 2, max(1, budget // 2))
    indices = spread_tokens(worth, budget, inputs.grid, stage_one)
    return indices, stage_one[indices]


@selector("cover", needs={"grid", "features"})
def cover(worth: torch.Tensor, inputs: Inputs, budget: int) -> torch.Tensor:
    """Those that make every token resemble a kept one, each gain times its worth (SCOPE)."""
    assert inputs.features is not None
    assert inputs.grid is not None
    return cover_tokens(worth, inputs.features, budget, inputs.grid)


def fill_up(stage_one: torch.Tensor, budget: int, grid: Grid | None) -> InStages:
    """Stage II: what is left of the budget, evenly spaced over the tokens that remain."""
    kept = stage_one | space_over(~stage_one, budget - stage_one.sum(), grid)
    indices = ascending(kept, budget)
    return indices, stage_one[indices]


def retain_top_p(scores: torch.Tensor, top_p: float, budget: int) -> torch.Tensor:
    """Stage I as a mask ``[N]``: the fewest top-ranked tokens with ``top_p`` of the mass."""
    ranked = torch.argsort(scores, descending=True, stable=True)
    count = stage_one_length(scores[ranked], top_p, budget)
    needed = torch.arange(scores.shape[0], device=scores.device) < count
    return torch.zeros_like(needed).scatter(0, ranked, needed)


def stage_one_length(ranked_scores: torch.Tensor, top_p: float, budget: int) -> torch.Tensor:
    """Number of ranks in Stage I, int64 scalar; the mass is added from left to right."""
    if ranked_scores.is_cuda:
        # Imported where it is needed: a CPU server never compiles a kernel.
        from specvlm_sglang.pruning import triton_stage_one

        return triton_stage_one.stage_one_length(ranked_scores, top_p, budget)
    mass = ranked_scores.double().cumsum(0)
    before = torch.cat([mass.new_zeros(1), mass[:-1]])
    # A rank belongs to the smallest sufficient k when the mass of those before it falls short.
    return (before[:budget] < top_p * mass[-1]).sum()
