"""How many ranked tokens Stage I keeps, counted on a GPU exactly as the reference counts them."""

# Triton reads the kernels' annotations: those of Python are not for it.
# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl

UNROLL = 16
"""Scores loaded together: loads overlap, only the additions wait for each other."""


def stage_one_length(ranked_scores: torch.Tensor, top_p: float, budget: int) -> torch.Tensor:
    """Number of leading scores that Stage I keeps, int64 scalar on their device.

    ``reference.selection.retain_top_p`` adds from left to right in float64. A parallel scan adds in
    an order of its own, in CUDA even in another one each time, and two tensor-parallel ranks could
    then disagree on a token. One program that adds in the reference's order takes well under a
    millisecond for the longest videos.

    Parameters
    ----------
    ranked_scores
        float32 ``[N]``, contiguous, descending, finite and at least 0.
    top_p, budget
        As in `specvlm_sglang.pruning.selection`; ``budget`` is at most N.
    """
    count = torch.empty((), dtype=torch.int64, device=ranked_scores.device)
    # A tensor, because a float argument of a kernel is float32.
    share = torch.full((), top_p, dtype=torch.float64, device=ranked_scores.device)
    count_ranks[(1,)](
        count, ranked_scores, share, ranked_scores.shape[0], budget, UNROLL=UNROLL, num_warps=1
    )
    return count


@triton.jit(do_not_specialize=["n", "budget"])
def count_ranks(out, scores, share, n, budget, UNROLL: tl.constexpr):
    """Write to ``out`` how many of the first ``budget`` ranks have too little mass before them."""
    total = tl.full((), 0.0, tl.float64)
    for start in range(0, n, UNROLL):
        for step in tl.static_range(UNROLL):
            score = tl.load(scores + start + step, mask=start + step < n, other=0.0)
            total += score.to(tl.float64)
    needed = tl.load(share) * total
    before = tl.full((), 0.0, tl.float64)
    count = tl.full((), 0, tl.int64)
    for start in range(0, budget, UNROLL):
        for step in tl.static_range(UNROLL):
            is_rank = start + step < budget
            score = tl.load(scores + start + step, mask=is_rank, other=0.0)
            count += (is_rank & (before < needed)).to(tl.int64)
            before += score.to(tl.float64)
    tl.store(out, count)
