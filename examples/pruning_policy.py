"""A pruning policy of your own: every frame keeps its most attended tokens, evenly many of them.

Serve with it:

    python -m sglang.launch_server ... --speculative-algorithm SPECVLM \\
        --specvlm-policy-file examples/pruning_policy.py --specvlm-policy frame-peaks

and measure it as docs/extending.md says. A request may also name it, as any other policy:
custom_params={"specvlm": {"policy": "frame-peaks"}}.
"""

import torch

from specvlm_sglang.policies import policy


@policy("frame-peaks", needs_scores=True, needs_grid=True)
def frame_peaks(
    scores: torch.Tensor, budget: int, grid: tuple[int, int, int] | None, top_p: float
) -> torch.Tensor:
    """The tokens that rank highest within their frames; int64 ``[budget]``."""
    assert grid is not None
    frames, area = grid[0], grid[1] * grid[2]
    within = scores.view(frames, area)
    rank = within.argsort(dim=1, descending=True).argsort(dim=1)
    # All first places, then all second ones; the last place that fits goes to the best of them.
    best_of_rank = within / (within.amax() + 1e-12)
    return (rank - best_of_rank).flatten().argsort()[:budget]
