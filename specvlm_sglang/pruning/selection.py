"""Which video tokens the draft keeps: the torch twin of ``reference.selection``.

Runs on the scores' device and never waits for it: K is known on the host, and what Stage I keeps is
a mask, never a length. Equal to the reference index for index on the same float32 scores, on every
device; its docstring defines every policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from specvlm_sglang.policies import Policy, check_retention
from specvlm_sglang.pruning.layout import VideoLayout
from specvlm_sglang.pruning.registry import find_policy, own_policies
from specvlm_sglang.pruning.spacing import Grid, ascending, space_over


@dataclass(frozen=True, eq=False)
class Selection:
    """The kept video tokens of one request, on the device.

    Attributes
    ----------
    indices
        int64 ``[K]``, ascending.
    stage_one
        bool ``[K]``: kept for its score.
    fallback
        bool scalar: the policy reads scores, but these held no mass or were not all finite and at
        least 0, and even spacing was used. With a budget for each video: so it was for any of them.
    """

    indices: torch.Tensor
    stage_one: torch.Tensor
    fallback: torch.Tensor


def video_token_budget(n: int, retention: float) -> int:
    """Number of video tokens to keep out of ``n``: ``floor(n * retention + 1e-6)``, at least 1.

    Without any tokens it is 0.

    Raises
    ------
    ValueError
        ``n`` negative or ``retention`` outside (0, 1].
    """
    if n < 0:
        raise ValueError(f"n={n} must be at least 0")
    check_retention(retention, "retention")
    # Without the small addend 1000 * (1 - 0.9) would keep 99 tokens, not 100.
    return min(n, max(1, int(n * retention + 1e-6)))


def kept_tokens(video_lengths: Sequence[int], policy: Policy, retention: float) -> int:
    """K of a prompt, known from lengths and options alone.

    Parameters
    ----------
    video_lengths
        Tokens of each video.
    policy
        Its needs say whether the videos share one budget.
    retention
        Share of the tokens to KEEP, in (0, 1].
    """
    if policy.keeps_all:
        return sum(video_lengths)
    if policy.needs_grid and len(video_lengths) > 1:
        return sum(video_token_budget(length, retention) for length in video_lengths)
    return video_token_budget(sum(video_lengths), retention)


def select_video_tokens(
    scores: torch.Tensor,
    *,
    retention: float,
    top_p: float,
    policy: str = "specvlm",
    grid: Grid | None = None,
    seed: int = 0,
) -> Selection:
    """Keep exactly ``video_token_budget(N, retention)`` video tokens (all for ``none``).

    Parameters
    ----------
    scores
        float32 ``[N]`` in prompt order, higher is kept first. Where the reference raises for scores
        that are not finite or negative, this falls back to even spacing, as for scores without
        mass: a check on the host would wait for the device.
    retention
        Share of the tokens to KEEP, in (0, 1].
    top_p
        Share of the mass that Stage I retains, in [0, 1] (SpecVLM, section 3).
    policy
        One of `specvlm_sglang.pruning.registry.policy_names`.
    grid
        ``(frames, rows, columns)`` with product N, needed by the grid policies unless N is 0.
    seed
        Seeds ``random``, at least 0. The same tokens as the reference draws.

    Raises
    ------
    ValueError
        Scores with more than one axis, an argument out of range, an unknown policy, a grid that
        is missing or does not fit, or (as far as it shows without waiting for a GPU) a policy of
        the user's own that returns something else than K tokens.
    """
    if scores.dim() != 1:
        raise ValueError(f"scores of shape {list(scores.shape)} must have one axis")
    n = scores.shape[0]
    budget = video_token_budget(n, retention)
    chosen = find_policy(policy)
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p={top_p} must lie in [0, 1]")
    if seed < 0:
        raise ValueError(f"seed={seed} must be at least 0")
    grid = None if grid is None else _checked_grid(grid, n)
    if grid is None and n > 0 and chosen.needs_grid:
        raise ValueError(f"grid=None must be (frames, rows, columns) for policy {policy!r}")
    if n == 0:
        nothing = torch.zeros(1, dtype=torch.bool, device=scores.device)
        return Selection(nothing[:0].long(), nothing[:0], nothing[0])
    clean, usable = _usable(scores if chosen.needs_scores else torch.zeros_like(scores))
    asked = clean, budget, grid if chosen.needs_grid else None, top_p
    if policy in own_policies():
        indices, stage_one = _checked(chosen, *asked)
        return Selection(indices, stage_one & usable, ~usable & chosen.needs_scores)
    kept = chosen.choose(*asked, seed=seed) if chosen.needs_seed else chosen.choose(*asked)
    if isinstance(kept, torch.Tensor):
        kept = kept, torch.zeros(kept.shape, dtype=torch.bool, device=scores.device)
    return Selection(*kept, ~usable & chosen.needs_scores)


def select_in_layout(
    scores: torch.Tensor, layout: VideoLayout, policy: Policy, retention: float, top_p: float
) -> Selection:
    """Select among the video tokens of a prompt: all its videos as one, or each on its own.

    Parameters
    ----------
    scores
        float32 ``[N]``, on the device where the selection is to be.
    layout
        Where the videos are, N tokens in total.
    policy, retention, top_p
        The request's.

    Raises
    ------
    ValueError
        A policy that needs a grid, and a video without one.
    """
    grids = layout.video_grids if policy.needs_grid else None
    if grids is not None and None in grids:
        raise ValueError(f"policy {policy.name!r} needs videos with a regular grid")
    if grids is not None and len(grids) > 1:
        # A grid describes one video: each gets a budget of its own.
        return select_per_video(
            scores,
            layout.video_lengths,
            retention=retention,
            top_p=top_p,
            policy=policy.name,
            grids=grids,
        )
    grid = None if grids is None else grids[0]
    return select_video_tokens(
        scores, retention=retention, top_p=top_p, policy=policy.name, grid=grid
    )


def select_per_video(
    scores: torch.Tensor,
    video_lengths: Sequence[int],
    *,
    retention: float,
    top_p: float,
    policy: str = "specvlm",
    grids: Sequence[Grid | None] | None = None,
    seed: int = 0,
) -> Selection:
    """Give each video of a prompt a budget of its own; indices count through all videos.

    Parameters
    ----------
    scores
        float32 ``[N]``, video after video in prompt order.
    video_lengths
        Tokens of each video, at least 0 each, N in total.
    grids
        One for each video.
    seed
        Seeds ``random``: video ``i`` draws from ``seed + i``.

    Other parameters and errors are those of `select_video_tokens`.
    """
    if any(length < 0 for length in video_lengths) or sum(video_lengths) != scores.shape[0]:
        raise ValueError(
            f"video_lengths={list(video_lengths)} must be at least 0 each and sum to the "
            f"{scores.shape[0]} scores"
        )
    if grids is None:
        grids = [None] * len(video_lengths)
    if len(grids) != len(video_lengths):
        raise ValueError(
            f"grids={list(grids)} must have one entry for each of the {len(video_lengths)} videos"
        )
    no_token = torch.zeros(0, dtype=torch.int64, device=scores.device)
    indices, stage_one = [no_token], [no_token.bool()]
    fallback = torch.zeros((), dtype=torch.bool, device=scores.device)
    start = 0
    for video, (length, grid) in enumerate(zip(video_lengths, grids, strict=True)):
        part = select_video_tokens(
            scores[start : start + length],
            retention=retention,
            top_p=top_p,
            policy=policy,
            grid=grid,
            seed=seed + video,
        )
        indices.append(part.indices + start)
        stage_one.append(part.stage_one)
        fallback = fallback | part.fallback
        start += length
    return Selection(torch.cat(indices), torch.cat(stage_one), fallback)


def _usable(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 scores, all zero unless they can be ranked, and whether they can (a bool scalar)."""
    # False for NaN; infinity passes the first test only.
    usable = ((scores >= 0) & torch.isfinite(scores)).all() & (scores > 0).any()
    return torch.where(usable, scores, torch.zeros_like(scores)).float(), usable


def _checked(
    own: Policy, scores: torch.Tensor, budget: int, grid: Grid | None, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a user's policy keeps; tokens named twice or out of range are made up for evenly."""
    n = scores.shape[0]
    if budget == n:
        everything = torch.arange(n, device=scores.device)
        return everything, torch.full_like(everything, own.needs_scores, dtype=torch.bool)
    chosen = own.choose(scores, budget, grid, top_p)
    if not isinstance(chosen, torch.Tensor) or chosen.dtype != torch.int64:
        kind = chosen.dtype if isinstance(chosen, torch.Tensor) else type(chosen).__name__
        raise ValueError(f"policy {own.name!r} returned {kind}, not an int64 tensor")
    if chosen.shape != (budget,):
        raise ValueError(
            f"policy {own.name!r} returned shape {list(chosen.shape)}, not [{budget}], the budget"
        )
    within = (chosen >= 0) & (chosen < n)
    # What lies out of range points at a spare place behind the last token.
    named = torch.zeros(n + 1, dtype=torch.bool, device=scores.device)
    named = named.scatter(0, torch.where(within, chosen, n), True)[:n]
    if chosen.device.type == "cpu" and int(named.sum()) < budget:
        raise ValueError(
            f"policy {own.name!r} returned {int(named.sum())} distinct tokens below {n}, "
            f"not {budget}, the budget"
        )
    indices = ascending(named | space_over(~named, budget - named.sum(), None), budget)
    return indices, named[indices] & own.needs_scores


def _checked_grid(grid: Grid, n: int) -> Grid:
    if len(grid) != 3 or any(not isinstance(side, int | np.integer) or side < 1 for side in grid):
        raise ValueError(f"grid={grid} must be (frames, rows, columns), each an integer >= 1")
    frames, rows, columns = (int(side) for side in grid)
    if math.prod((frames, rows, columns)) != n:
        raise ValueError(f"grid={grid} must have as many tokens as scores, {n}")
    return frames, rows, columns
