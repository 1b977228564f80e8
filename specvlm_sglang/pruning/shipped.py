"""The project's own pruning policies, one function each; `reference.selection` defines each.

Every function has the shape that `specvlm_sglang.policies.policy` describes. Those that keep tokens
for their score return a second tensor beside the indices, which ascend here: bool ``[budget]``,
kept for its score. Where scores hold no mass they are zeros, and even spacing is what is left.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from specvlm_sglang.copies import to_device
from specvlm_sglang.policies import policy
from specvlm_sglang.pruning.spacing import Grid, ascending, evenly, grid_order, space_over

_InStages = tuple[torch.Tensor, torch.Tensor]


@policy("specvlm", needs_scores=True)
def specvlm(scores: torch.Tensor, budget: int, grid: Grid | None, top_p: float) -> _InStages:
    """Top-P retention, then even spacing over the rest in prompt order (SpecVLM, section 3)."""
    return _fill_up(retain_top_p(scores, top_p, budget), budget, None)


@policy("specvlm-grid", needs_scores=True, needs_grid=True)
def specvlm_grid(scores: torch.Tensor, budget: int, grid: Grid | None, top_p: float) -> _InStages:
    """Top-P retention, then even spacing over frames and over each frame's area."""
    return _fill_up(retain_top_p(scores, top_p, budget), budget, grid)


@policy("attention", needs_scores=True)
def attention(scores: torch.Tensor, budget: int, grid: Grid | None, top_p: float) -> _InStages:
    """The highest scores."""
    ranked = torch.argsort(scores, descending=True, stable=True)
    is_high = torch.arange(scores.shape[0], device=scores.device) < budget
    stage_one = torch.zeros_like(is_high).scatter(0, ranked, is_high) & (scores > 0).any()
    return _fill_up(stage_one, budget, None)


@policy("uniform")
def uniform(scores: torch.Tensor, budget: int, grid: Grid | None, top_p: float) -> torch.Tensor:
    """Even spacing in prompt order."""
    return evenly(scores.shape[0], budget, scores.device)


@policy("uniform-grid", needs_grid=True)
def uniform_grid(
    scores: torch.Tensor, budget: int, grid: Grid | None, top_p: float
) -> torch.Tensor:
    """Even spacing over frames and over each frame's area."""
    assert grid is not None
    steps = torch.arange(budget, device=scores.device)
    middles = (2 * steps + 1) * scores.shape[0] // (2 * budget)
    return to_device(grid_order(grid), scores.device)[middles].sort().values


@policy("random", needs_seed=True)
def random(
    scores: torch.Tensor, budget: int, grid: Grid | None, top_p: float, *, seed: int
) -> torch.Tensor:
    """The first tokens of a permutation drawn from the seed."""
    drawn = to_device(_permutation(scores.shape[0], seed), scores.device)
    return drawn[:budget].sort().values


@policy("window-front")
def window_front(
    scores: torch.Tensor, budget: int, grid: Grid | None, top_p: float
) -> torch.Tensor:
    """The first tokens."""
    return torch.arange(budget, device=scores.device)


@policy("window-middle")
def window_middle(
    scores: torch.Tensor, budget: int, grid: Grid | None, top_p: float
) -> torch.Tensor:
    """Consecutive tokens from the middle."""
    start = (scores.shape[0] - budget) // 2
    return torch.arange(start, start + budget, device=scores.device)


@policy("window-back")
def window_back(scores: torch.Tensor, budget: int, grid: Grid | None, top_p: float) -> torch.Tensor:
    """The last tokens."""
    n = scores.shape[0]
    return torch.arange(n - budget, n, device=scores.device)


@policy("frames", needs_grid=True)
def frames(scores: torch.Tensor, budget: int, grid: Grid | None, top_p: float) -> torch.Tensor:
    """Whole frames, evenly spaced; the last one that is kept is thinned to fit."""
    assert grid is not None
    device, area = scores.device, grid[1] * grid[2]
    starts = evenly(grid[0], -(-budget // area), device) * area
    whole = (starts[:-1, None] + torch.arange(area, device=device)).flatten()
    return torch.cat([whole, starts[-1] + evenly(area, budget - whole.shape[0], device)])


@policy("none", keeps_all=True)
def everything(scores: torch.Tensor, budget: int, grid: Grid | None, top_p: float) -> torch.Tensor:
    """All tokens, whatever the retention."""
    return torch.arange(scores.shape[0], device=scores.device)


def _fill_up(stage_one: torch.Tensor, budget: int, grid: Grid | None) -> _InStages:
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


@lru_cache(maxsize=32)
def _permutation(n: int, seed: int) -> torch.Tensor:
    """The reference's permutation of ``n`` tokens; NumPy's generator, so on the host."""
    return torch.from_numpy(np.random.default_rng(seed).permutation(np.arange(n, dtype=np.int64)))
