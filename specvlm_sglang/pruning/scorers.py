"""What each video token is worth: the project's own scorers; `reference.policies` defines each."""

from __future__ import annotations

import torch

from specvlm_sglang.policies import Inputs, scorer
from specvlm_sglang.pruning.features import STEPS, temporal_change


@scorer("attention", needs={"scores"})
def attention(inputs: Inputs) -> torch.Tensor:
    """The target's mean attention (SpecVLM, section 3)."""
    return inputs.scores


@scorer("root-attention", needs={"scores"})
def root_attention(inputs: Inputs) -> torch.Tensor:
    """Its square root: SCOPE's alpha of 0.5."""
    return inputs.scores.sqrt()


@scorer("change", needs={"grid", "features"})
def change(inputs: Inputs) -> torch.Tensor:
    """Cosine distance to the same place one frame earlier; the question is not asked."""
    assert inputs.features is not None
    assert inputs.grid is not None
    return temporal_change(inputs.features, inputs.grid)


@scorer("attention-change", needs={"scores", "grid", "features"})
def attention_change(inputs: Inputs) -> torch.Tensor:
    """Geometric mean of attention and change; what stands still ranks by its attention."""
    moved = change(inputs).double() + 1 / STEPS
    return (inputs.scores.double() * moved).sqrt().float()


@scorer("evs", needs={"grid", "features"})
def evs(inputs: Inputs) -> torch.Tensor:
    """Change, and the first frame before any (EVS, arXiv 2510.14624)."""
    assert inputs.grid is not None
    first = torch.arange(inputs.n, device=inputs.device) < inputs.grid[1] * inputs.grid[2]
    return change(inputs).masked_fill(first, 255)


@scorer("equal")
def equal(inputs: Inputs) -> torch.Tensor:
    """All the same: what is kept is the selector's alone."""
    return torch.ones(inputs.n, device=inputs.device)
