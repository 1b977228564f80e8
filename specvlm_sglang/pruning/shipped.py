"""The project's own pruning policies by name; `reference.policies` defines each.

Most are a scorer and a selector (`PAIRS`); the others are one function each, in the form that
`specvlm_sglang.policies.policy` describes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from specvlm_sglang.copies import to_device
from specvlm_sglang.policies import Inputs, policy
from specvlm_sglang.pruning.spacing import evenly, grid_order

PAIRS = {
    "specvlm": "attention/two-stage",
    "specvlm-grid": "attention/two-stage-grid",
    "attention": "attention/top-k",
    "attention-spread": "attention/spread",
    "attention-change-spread": "attention-change/spread",
    "scope": "root-attention/cover",
    "floc": "equal/cover",
    "change": "change/two-stage",
    "evs": "evs/top-k",
    "specvlm-spread": "attention-change/top-p-spread",
}
"""Names of their own for some of the pairs."""
ORDER = (
    "specvlm",
    "specvlm-grid",
    "attention",
    "uniform",
    "uniform-grid",
    "random",
    "window-front",
    "window-middle",
    "window-back",
    "frames",
    "none",
    "attention-spread",
    "attention-change-spread",
    "scope",
    "floc",
    "change",
    "evs",
    "specvlm-spread",
)
"""In which they are shown."""


@policy("uniform", needs=())
def uniform(inputs: Inputs, budget: int) -> torch.Tensor:
    """Even spacing in prompt order."""
    return evenly(inputs.n, budget, inputs.device)


@policy("uniform-grid", needs={"grid"})
def uniform_grid(inputs: Inputs, budget: int) -> torch.Tensor:
    """Even spacing over frames and over each frame's area."""
    assert inputs.grid is not None
    steps = torch.arange(budget, device=inputs.device)
    middles = (2 * steps + 1) * inputs.n // (2 * budget)
    return to_device(grid_order(inputs.grid), inputs.device)[middles].sort().values


@policy("random", needs={"seed"})
def random(inputs: Inputs, budget: int) -> torch.Tensor:
    """The first tokens of a permutation drawn from the seed."""
    drawn = to_device(_permutation(inputs.n, inputs.seed), inputs.device)
    return drawn[:budget].sort().values


@policy("window-front", needs=())
def window_front(inputs: Inputs, budget: int) -> torch.Tensor:
    """The first tokens."""
    return torch.arange(budget, device=inputs.device)


@policy("window-middle", needs=())
def window_middle(inputs: Inputs, budget: int) -> torch.Tensor:
    """Consecutive tokens from the middle."""
    start = (inputs.n - budget) // 2
    return torch.arange(start, start + budget, device=inputs.device)


@policy("window-back", needs=())
def window_back(inputs: Inputs, budget: int) -> torch.Tensor:
    """The last tokens."""
    return torch.arange(inputs.n - budget, inputs.n, device=inputs.device)


@policy("frames", needs={"grid"})
def frames(inputs: Inputs, budget: int) -> torch.Tensor:
    """Whole frames, evenly spaced; the last one that is kept is thinned to fit."""
    assert inputs.grid is not None
    count, rows, columns = inputs.grid
    device, area = inputs.device, rows * columns
    starts = evenly(count, -(-budget // area), device) * area
    whole = (starts[:-1, None] + torch.arange(area, device=device)).flatten()
    return torch.cat([whole, starts[-1] + evenly(area, budget - whole.shape[0], device)])


@policy("none", needs=(), keeps_all=True)
def everything(inputs: Inputs, budget: int) -> torch.Tensor:
    """All tokens, whatever the retention."""
    return torch.arange(inputs.n, device=inputs.device)


@lru_cache(maxsize=32)
def _permutation(n: int, seed: int) -> torch.Tensor:
    """The reference's permutation of ``n`` tokens; NumPy's generator, so on the host."""
    return torch.from_numpy(np.random.default_rng(seed).permutation(np.arange(n, dtype=np.int64)))
