"""Which video tokens the draft keeps: the torch twin of ``reference.selection``.

Runs on the scores' device and never waits for it: K is known on the host, and what Stage I keeps is
a mask, never a length. Equal to the reference index for index on the same float32 scores, on every
device; its docstring defines every policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from specvlm_sglang.copies import to_device
from specvlm_sglang.policies import (
    NEED_SCORES,
    OwnPolicy,
    check_policy,
    check_retention,
    needs_grid,
    own_policies,
)

Grid = tuple[int, int, int]


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


def select_video_tokens(
    scores: torch.Tensor,
    *,
    retention: float,
    top_p: float = 0.4,
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
        One of `specvlm_sglang.policies.policy_names`.
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
    check_policy(policy, "policy")
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p={top_p} must lie in [0, 1]")
    if seed < 0:
        raise ValueError(f"seed={seed} must be at least 0")
    grid = None if grid is None else _checked_grid(grid, n)
    if grid is None and n > 0 and needs_grid(policy):
        raise ValueError(f"grid=None must be (frames, rows, columns) for policy {policy!r}")
    own = own_policies().get(policy)
    if n > 0 and own is not None:
        return _chosen_by(own, scores, budget, grid, top_p)
    if n == 0 or policy not in NEED_SCORES:
        indices = _without_scores(n, budget, policy, grid, seed, scores.device)
        nothing = torch.zeros(indices.shape[0] + 1, dtype=torch.bool, device=scores.device)
        return Selection(indices, nothing[:-1], nothing[-1])

    clean, usable = _usable(scores)
    ranked = torch.argsort(clean, descending=True, stable=True)
    if policy == "attention":
        is_high = torch.arange(n, device=scores.device) < budget
        stage_one = torch.zeros_like(is_high).scatter(0, ranked, is_high) & usable
    else:
        stage_one = _retain_top_p(clean, ranked, top_p, budget)
    spacing = grid if policy == "specvlm-grid" else None
    kept = stage_one | _space_over(~stage_one, budget - stage_one.sum(), spacing)
    indices = _ascending(kept, budget)
    return Selection(indices, stage_one[indices], ~usable)


def select_per_video(
    scores: torch.Tensor,
    video_lengths: Sequence[int],
    *,
    retention: float,
    top_p: float = 0.4,
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


def _ascending(kept: torch.Tensor, budget: int) -> torch.Tensor:
    """Indices of the ``budget`` tokens in a mask ``[N]``, without counting them on the host."""
    # A stable sort brings the kept tokens to the front in order.
    return torch.argsort((~kept).to(torch.uint8), stable=True)[:budget]


def _chosen_by(
    own: OwnPolicy, scores: torch.Tensor, budget: int, grid: Grid | None, top_p: float
) -> Selection:
    """What a user's policy keeps; tokens named twice or out of range are made up for evenly."""
    n = scores.shape[0]
    everything = torch.arange(n, device=scores.device)
    unscored = torch.zeros(budget, dtype=torch.bool, device=scores.device)
    clean, usable = _usable(scores if own.needs_scores else torch.zeros_like(scores))
    fallback = ~usable & own.needs_scores
    if budget == n:
        return Selection(everything, unscored | own.needs_scores & usable, fallback)
    chosen = own.choose(clean, budget, grid if own.needs_grid else None, top_p)
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
    indices = _ascending(named | _space_over(~named, budget - named.sum(), None), budget)
    return Selection(indices, named[indices] & own.needs_scores & usable, fallback)


def _checked_grid(grid: Grid, n: int) -> Grid:
    if len(grid) != 3 or any(not isinstance(side, int | np.integer) or side < 1 for side in grid):
        raise ValueError(f"grid={grid} must be (frames, rows, columns), each an integer >= 1")
    frames, rows, columns = (int(side) for side in grid)
    if math.prod((frames, rows, columns)) != n:
        raise ValueError(f"grid={grid} must have as many tokens as scores, {n}")
    return frames, rows, columns


def _retain_top_p(
    scores: torch.Tensor, ranked: torch.Tensor, top_p: float, budget: int
) -> torch.Tensor:
    """Stage I as a mask ``[N]``: the fewest top-ranked tokens with ``top_p`` of the mass."""
    count = _stage_one_length(scores[ranked], top_p, budget)
    needed = torch.arange(scores.shape[0], device=scores.device) < count
    return torch.zeros_like(needed).scatter(0, ranked, needed)


def _stage_one_length(ranked_scores: torch.Tensor, top_p: float, budget: int) -> torch.Tensor:
    """Number of ranks in Stage I, int64 scalar; the mass is added from left to right."""
    if ranked_scores.is_cuda:
        # Imported where it is needed: a CPU server never compiles a kernel.
        from specvlm_sglang.pruning.triton_stage_one import stage_one_length

        return stage_one_length(ranked_scores, top_p, budget)
    mass = ranked_scores.double().cumsum(0)
    before = torch.cat([mass.new_zeros(1), mass[:-1]])
    # A rank belongs to the smallest sufficient k when the mass of those before it falls short.
    return (before[:budget] < top_p * mass[-1]).sum()


def _space_over(candidates: torch.Tensor, count: torch.Tensor, grid: Grid | None) -> torch.Tensor:
    """Stage II as a mask ``[N]``: ``count`` evenly spaced candidates.

    ``candidates`` is a mask ``[N]`` and ``count`` an int64 scalar on its device, so neither the
    number of candidates nor that of the kept ones is known here.
    """
    n = candidates.shape[0]
    device = candidates.device
    order = None
    if grid is not None:
        order = to_device(_grid_order(grid), device)
        candidates = candidates[order]
    remaining = candidates.sum()
    steps = torch.arange(n, device=device)
    if grid is None:
        wanted = steps * (remaining - 1) // (count - 1).clamp(min=1)
    else:
        wanted = (2 * steps + 1) * remaining // (2 * count).clamp(min=1)
    # Steps beyond the count point at a spare place behind the last rank.
    wanted = torch.where(steps < count, wanted, torch.full_like(wanted, n))
    is_wanted = torch.zeros(n + 1, dtype=torch.bool, device=device).scatter(0, wanted, True)
    rank = candidates.long().cumsum(0) - 1
    kept = candidates & is_wanted[rank.clamp(min=0)]
    if order is None:
        return kept
    return torch.zeros_like(kept).scatter(0, order, kept)


def _without_scores(
    n: int, budget: int, policy: str, grid: Grid | None, seed: int, device: torch.device
) -> torch.Tensor:
    """The kept tokens of a policy that reads no scores, or of no tokens: int64 [K], ascending."""
    if n == 0 or policy == "none":
        return torch.arange(n, device=device)
    if policy == "uniform":
        return _evenly(n, budget, device)
    if policy == "random":
        return to_device(_permutation(n, seed), device)[:budget].sort().values
    if grid is not None and policy == "uniform-grid":
        middles = (2 * torch.arange(budget, device=device) + 1) * n // (2 * budget)
        return to_device(_grid_order(grid), device)[middles].sort().values
    if grid is not None and policy == "frames":
        frames, area = grid[0], grid[1] * grid[2]
        starts = _evenly(frames, -(-budget // area), device) * area
        whole = (starts[:-1, None] + torch.arange(area, device=device)).flatten()
        return torch.cat([whole, starts[-1] + _evenly(area, budget - whole.shape[0], device)])
    start = {"window-front": 0, "window-middle": (n - budget) // 2, "window-back": n - budget}
    return torch.arange(start[policy], start[policy] + budget, device=device)


def _evenly(length: int, count: int, device: torch.device) -> torch.Tensor:
    """``count`` evenly spaced indices below ``length``, the first and the last among them."""
    return torch.arange(count, device=device) * (length - 1) // max(count - 1, 1)


@lru_cache(maxsize=32)
def _permutation(n: int, seed: int) -> torch.Tensor:
    """The reference's permutation of ``n`` tokens; NumPy's generator, so on the host."""
    return torch.from_numpy(np.random.default_rng(seed).permutation(np.arange(n, dtype=np.int64)))


@lru_cache(maxsize=32)
def _grid_order(grid: Grid) -> torch.Tensor:
    """Token indices frame after frame, each frame along a Hilbert curve (reference.spacing)."""
    frames, rows, columns = grid
    y, x = np.divmod(np.arange(rows * columns, dtype=np.int64), columns)
    side = 1 << (max(rows, columns) - 1).bit_length()
    distance = np.zeros(rows * columns, dtype=np.int64)
    half = side // 2
    while half:
        right, down = (x & half) > 0, (y & half) > 0
        distance += half * half * (3 * right ^ down)
        # The curves of the two upper quadrants are turned to join their neighbours'.
        mirrored = right & ~down
        x, y = np.where(mirrored, side - 1 - x, x), np.where(mirrored, side - 1 - y, y)
        x, y = np.where(down, x, y), np.where(down, y, x)
        half //= 2
    starts = np.arange(frames, dtype=np.int64) * rows * columns
    return torch.from_numpy((starts[:, None] + np.argsort(distance)).reshape(-1))
