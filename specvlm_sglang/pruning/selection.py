"""Which video tokens the draft keeps: the torch twin of ``reference.selection``.

Runs on the scores' device without waiting for it: K is known on the host, and what Stage I keeps is
a mask, never a length. Equal to the reference index for index on the same float32 scores; its
docstring defines every policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from specvlm_sglang.policies import NEED_GRID, NEED_SCORES, check_policy, check_retention

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
        bool scalar: the scores held no mass (or were not finite) although the policy reads them,
        and uniform spacing was used.
    """

    indices: torch.Tensor
    stage_one: torch.Tensor
    fallback: torch.Tensor


def video_token_budget(n: int, retention: float) -> int:
    """Number of video tokens to keep out of ``n``: ``floor(n * retention + 1e-6)``, at least 1.

    Raises
    ------
    ValueError
        ``n`` negative or ``retention`` outside (0, 1].
    """
    if n < 0:
        raise ValueError(f"n={n} must be at least 0")
    check_retention(retention, "retention")
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
        float32 ``[N]``, not negative, higher is kept first. Without mass or not finite: uniform.
    retention
        Share of the tokens to KEEP, in (0, 1].
    top_p
        Share of the mass that Stage I retains, in [0, 1].
    policy
        One of `specvlm_sglang.policies.POLICIES`.
    grid
        ``(frames, rows, columns)``, needed by the grid policies.
    seed
        Seeds ``random``.

    Raises
    ------
    ValueError
        An argument out of range, or a grid that is missing or does not fit.
    """
    check_policy(policy, "policy")
    n = scores.shape[0]
    budget = n if policy == "none" else video_token_budget(n, retention)
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p={top_p} must lie in [0, 1]")
    if grid is not None and int(np.prod(grid)) != n:
        raise ValueError(f"grid={grid} must have as many tokens as scores, {n}")
    if grid is None and policy in NEED_GRID and n > 0:
        raise ValueError(f"grid=None must be (frames, rows, columns) for policy {policy!r}")
    device = scores.device
    nothing = torch.zeros(n, dtype=torch.bool, device=device)
    if n == 0:
        return Selection(torch.zeros(0, dtype=torch.int64, device=device), nothing, nothing.any())
    no_fallback = torch.zeros((), dtype=torch.bool, device=device)
    if policy not in NEED_SCORES:
        if policy in ("uniform", "uniform-grid"):
            spacing = grid if policy == "uniform-grid" else None
            kept = _space_over(~nothing, nothing.sum() + budget, spacing)
        else:
            chosen = _without_scores(n, budget, policy, grid, seed)
            kept = nothing.clone()
            kept[torch.from_numpy(chosen).to(device)] = True
        return _selection(kept, nothing, budget, no_fallback)
    usable = torch.isfinite(scores).all() & (scores > 0).any()
    clean = torch.where(usable, scores, torch.zeros_like(scores)).float()
    ranked = torch.argsort(clean, descending=True, stable=True)
    if policy == "attention":
        stage_one = nothing.scatter(0, ranked, torch.arange(n, device=device) < budget) & usable
        spacing = None
    else:
        stage_one = _retain_top_p(clean, ranked, top_p, budget)
        spacing = grid if policy == "specvlm-grid" else None
    kept = stage_one | _space_over(~stage_one, budget - stage_one.sum(), spacing)
    return _selection(kept, stage_one, budget, ~usable)


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
        float32 ``[N]``, video after video.
    video_lengths
        Tokens of each video, N in total.
    grids
        One per video.

    Other parameters and errors are those of `select_video_tokens`.
    """
    if sum(video_lengths) != scores.shape[0]:
        raise ValueError(
            f"video_lengths={list(video_lengths)} must sum to the {scores.shape[0]} scores"
        )
    parts = []
    start = 0
    for video, length in enumerate(video_lengths):
        part = select_video_tokens(
            scores[start : start + length],
            retention=retention,
            top_p=top_p,
            policy=policy,
            grid=None if grids is None else grids[video],
            seed=seed + video,
        )
        parts.append((part, start))
        start += length
    return Selection(
        torch.cat([part.indices + first for part, first in parts]),
        torch.cat([part.stage_one for part, _ in parts]),
        torch.stack([part.fallback for part, _ in parts]).any(),
    )


def _retain_top_p(
    scores: torch.Tensor, ranked: torch.Tensor, top_p: float, budget: int
) -> torch.Tensor:
    """Stage I as a mask ``[N]``: the fewest top-ranked tokens with ``top_p`` of the mass."""
    mass = scores[ranked].double().cumsum(0)
    before = torch.cat([mass.new_zeros(1), mass[:-1]])
    # Rank r belongs to the smallest sufficient k when the mass of the ranks before it falls short.
    needed = before < top_p * mass[-1]
    needed &= torch.arange(scores.shape[0], device=scores.device) < budget
    return torch.zeros_like(needed).scatter(0, ranked, needed)


def _space_over(candidates: torch.Tensor, count: torch.Tensor, grid: Grid | None) -> torch.Tensor:
    """Stage II as a mask ``[N]``: ``count`` (on the device) evenly spaced candidates."""
    n = candidates.shape[0]
    device = candidates.device
    count = count.long()
    order = None
    if grid is not None:
        order = torch.from_numpy(_grid_order(grid)).to(device)
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
    is_wanted[n] = False
    rank = candidates.long().cumsum(0) - 1
    kept = candidates & is_wanted[rank.clamp(min=0)]
    if order is None:
        return kept
    return torch.zeros_like(kept).scatter(0, order, kept)


def _selection(
    kept: torch.Tensor, stage_one: torch.Tensor, budget: int, fallback: torch.Tensor
) -> Selection:
    # A stable sort brings the kept tokens to the front in order, without a host-side count.
    indices = torch.argsort((~kept).to(torch.uint8), stable=True)[:budget]
    return Selection(indices, stage_one[indices], fallback)


def _without_scores(
    n: int, budget: int, policy: str, grid: Grid | None, seed: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The policies that neither rank nor space tokens one by one, on the host."""
    everything = np.arange(n, dtype=np.int64)
    if policy == "none":
        return everything
    if policy == "random":
        return np.random.default_rng(seed).permutation(everything)[:budget]
    if policy == "frames":
        assert grid is not None
        frames, area = grid[0], grid[1] * grid[2]
        kept = -(-budget // area)
        rows = np.arange(kept) * (frames - 1) // max(kept - 1, 1)
        whole = everything.reshape(frames, area)[rows[:-1]].reshape(-1)
        rest = budget - whole.size
        last = everything.reshape(frames, area)[rows[-1]]
        return np.concatenate([whole, last[np.arange(rest) * (area - 1) // max(rest - 1, 1)]])
    start = {"window-front": 0, "window-middle": (n - budget) // 2, "window-back": n - budget}
    return everything[start[policy] : start[policy] + budget]


@lru_cache(maxsize=32)
def _grid_order(grid: Grid) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
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
    return (starts[:, None] + np.argsort(distance)[None, :]).reshape(-1)
