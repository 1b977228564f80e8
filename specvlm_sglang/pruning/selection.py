"""Which video tokens the draft keeps: the torch twin of ``reference.selection``.

Runs on the scores' device and never waits for it: K is known on the host, and what Stage I keeps is
a mask, never a length. Equal to the reference index for index on the same float32 scores, on every
device; ``reference.policies`` defines every policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import torch

from specvlm_sglang.policies import Inputs, Policy
from specvlm_sglang.pruning.budgets import video_token_budget, video_token_budgets
from specvlm_sglang.pruning.checks import checked_kept
from specvlm_sglang.pruning.composition import usable_scores
from specvlm_sglang.pruning.layout import VideoLayout
from specvlm_sglang.pruning.registry import find_policy
from specvlm_sglang.pruning.spacing import Grid, evenly


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
        bool scalar: what the policy ranks by held no mass or was not all finite and at least 0, and
        even spacing was used. With a budget for each video: so it was for any of them.
    """

    indices: torch.Tensor
    stage_one: torch.Tensor
    fallback: torch.Tensor


def select_video_tokens(
    scores: torch.Tensor,
    *,
    retention: float,
    top_p: float,
    policy: str = "specvlm",
    grid: Grid | None = None,
    seed: int = 0,
    features: torch.Tensor | None = None,
    layer_scores: torch.Tensor | None = None,
    last_row_scores: torch.Tensor | None = None,
    frame_seconds: torch.Tensor | None = None,
    at_most: int | None = None,
) -> Selection:
    """Keep exactly ``video_token_budget(N, retention, at_most)`` tokens (all for ``none``).

    Parameters
    ----------
    scores
        float32 ``[N]`` in prompt order, higher is kept first. Where the reference raises for scores
        that are not finite or negative, this falls back to even spacing, as for scores without
        mass: a check on the host would wait for the device. So for features that are not finite.
    retention
        Share of the tokens to KEEP, in (0, 1].
    top_p
        Share of the mass that Stage I retains, in [0, 1] (SpecVLM, section 3).
    policy
        As `specvlm_sglang.pruning.registry.find_policy` takes it.
    grid
        ``(frames, rows, columns)`` with product N, needed by the grid policies unless N is 0.
    seed
        Seeds ``random``, at least 0. The same tokens as the reference draws.
    features, layer_scores, last_row_scores, frame_seconds
        See `specvlm_sglang.policies.Inputs`; a policy that asks for one must get it, unless N is 0.
    at_most
        Never more tokens than this, at least 1.

    Raises
    ------
    ValueError
        Scores with more than one axis, an argument out of range, an unknown policy, an input that
        is missing or does not fit, or (as far as it shows without waiting for a GPU) a policy of
        the user's own that returns something else than K tokens.
    """
    if scores.dim() != 1:
        raise ValueError(f"scores of shape {list(scores.shape)} must have one axis")
    budget = video_token_budget(scores.shape[0], retention, at_most)
    grid = None if grid is None else _checked_grid(grid, scores.shape[0])
    given = Inputs(
        scores.shape[0],
        scores.device,
        top_p,
        scores,
        layer_scores,
        last_row_scores,
        grid,
        features,
        frame_seconds,
        seed,
    )
    return _select(given, find_policy(policy), budget)


def _select(given: Inputs, policy: Policy, budget: int) -> Selection:
    n, device = given.n, given.device
    if not 0 <= given.top_p <= 1:
        raise ValueError(f"top_p={given.top_p} must lie in [0, 1]")
    if given.seed < 0:
        raise ValueError(f"seed={given.seed} must be at least 0")
    if n == 0:
        nothing = torch.zeros(1, dtype=torch.bool, device=device)
        return Selection(nothing[:0].long(), nothing[:0], nothing[0])
    inputs, sound, finite = _asked(given, policy)
    if policy.checks and budget == n:
        indices = torch.arange(n, device=device)
        return Selection(indices, sound.expand(n) & policy.needs_scores, ~sound)
    kept = policy.choose(inputs, budget)
    if policy.checks:
        indices, named = checked_kept(f"policy {policy.name!r}", kept, n, budget)
        kept = indices, named & sound & policy.needs_scores
    if isinstance(kept, torch.Tensor):
        kept = kept, torch.zeros(kept.shape, dtype=torch.bool, device=device)
    indices, stage_one = kept[0], kept[1]
    if finite is not None:
        indices = torch.where(finite, indices, evenly(n, budget, device))
        stage_one = stage_one & finite
    return Selection(indices, stage_one, ~sound if len(kept) == 2 else kept[2] | ~sound)


def _asked(given: Inputs, policy: Policy) -> tuple[Inputs, torch.Tensor, torch.Tensor | None]:
    """What the policy asked for, and whether all of it is of use (a bool scalar).

    The last is whether its features are, None for a policy without.
    """
    missing = [need for need in sorted(policy.needs) if getattr(given, need) is None]
    if missing:
        what = "(frames, rows, columns)" if missing[0] == "grid" else "a tensor"
        raise ValueError(f"{missing[0]}=None must be {what} for policy {policy.name!r}")
    of_use: list[torch.Tensor] = []
    finite = None
    asked: dict[str, torch.Tensor | None] = {}
    for need in ("scores", "layer_scores", "last_row_scores"):
        value = getattr(given, need)
        if need in policy.needs:
            asked[need], usable = usable_scores(value)
            of_use.append(usable)
        else:
            asked[need] = torch.zeros_like(value) if need == "scores" else None
    if "features" in policy.needs:
        vectors = given.features
        assert vectors is not None
        if vectors.dim() != 2 or vectors.shape[0] != given.n or vectors.shape[1] < 1:
            raise ValueError(f"features of shape {list(vectors.shape)} must be [{given.n}, d]")
        finite = torch.isfinite(vectors).all()
        asked["features"] = torch.where(finite, vectors, torch.zeros_like(vectors))
        of_use.append(finite)
    else:
        asked["features"] = None
    inputs = replace(
        given,
        **asked,  # type: ignore[arg-type]
        grid=given.grid if "grid" in policy.needs else None,
        frame_seconds=given.frame_seconds if "frame_seconds" in policy.needs else None,
    )
    if not of_use:
        return inputs, torch.ones((), dtype=torch.bool, device=given.device), finite
    return inputs, reduce(torch.logical_and, of_use), finite


def select_in_layout(
    scores: torch.Tensor,
    layout: VideoLayout,
    policy: Policy,
    retention: float,
    top_p: float,
    *,
    features: torch.Tensor | None = None,
    layer_scores: torch.Tensor | None = None,
    last_row_scores: torch.Tensor | None = None,
    at_most: int | None = None,
) -> Selection:
    """Select among the video tokens of a prompt: all its videos as one, or each on its own.

    Parameters
    ----------
    scores
        float32 ``[N]``, on the device where the selection is to be.
    layout
        Where the videos are, N tokens in total.
    policy, retention, top_p, at_most
        The request's.
    features, layer_scores, last_row_scores
        ``[N, d]``, ``[layers, N]`` and ``[N]``, for policies that ask for them.

    Raises
    ------
    ValueError
        A policy that needs a grid or times, and a video without.
    """
    if policy.needs_grid and None in layout.video_grids:
        raise ValueError(f"policy {policy.name!r} needs videos with a regular grid")
    times = None
    if "frame_seconds" in policy.needs:
        times = [
            _frame_seconds(layout, video, policy, scores.device)
            for video in range(len(layout.video_lengths))
        ]
    return select_per_video(
        scores,
        # What describes one video gives each a budget of its own; the others see one long video.
        layout.video_lengths if policy.per_video else (layout.video_tokens,),
        retention=retention,
        top_p=top_p,
        policy=policy.name,
        grids=layout.video_grids if policy.needs_grid else None,
        features=features,
        layer_scores=layer_scores,
        last_row_scores=last_row_scores,
        frame_seconds=times,
        at_most=at_most,
    )


def _frame_seconds(
    layout: VideoLayout, video: int, policy: Policy, device: torch.device
) -> torch.Tensor:
    grid, seconds = layout.video_grids[video], layout.seconds_per_frame[video]
    if grid is None or seconds is None:
        raise ValueError(f"policy {policy.name!r} needs videos with known frame times")
    return torch.arange(grid[0], device=device) * seconds


def select_per_video(
    scores: torch.Tensor,
    video_lengths: Sequence[int],
    *,
    retention: float,
    top_p: float,
    policy: str = "specvlm",
    grids: Sequence[Grid | None] | None = None,
    seed: int = 0,
    features: torch.Tensor | None = None,
    layer_scores: torch.Tensor | None = None,
    last_row_scores: torch.Tensor | None = None,
    frame_seconds: Sequence[torch.Tensor] | None = None,
    at_most: int | None = None,
) -> Selection:
    """Give each video of a prompt a budget of its own; indices count through all videos.

    Parameters
    ----------
    scores
        float32 ``[N]``, video after video in prompt order.
    video_lengths
        Tokens of each video, at least 0 each, N in total.
    grids, frame_seconds
        One for each video.
    seed
        Seeds ``random``: video ``i`` draws from ``seed + i``.
    features, layer_scores, last_row_scores
        Of all videos, N tokens.
    at_most
        Of all videos together (`video_token_budgets`).

    Other parameters and errors are those of `select_video_tokens`.
    """
    if any(length < 0 for length in video_lengths) or sum(video_lengths) != scores.shape[0]:
        raise ValueError(
            f"video_lengths={list(video_lengths)} must be at least 0 each and sum to the "
            f"{scores.shape[0]} scores"
        )
    if grids is not None and len(grids) != len(video_lengths):
        raise ValueError(
            f"grids={list(grids)} must have one entry for each of the {len(video_lengths)} videos"
        )
    chosen = find_policy(policy)
    budgets = video_token_budgets(video_lengths, retention, at_most)
    parts: list[tuple[int, Selection]] = []
    start = 0
    for video, (length, budget) in enumerate(zip(video_lengths, budgets, strict=True)):
        inside = slice(start, start + length)
        start += length
        if budget == 0 and not chosen.keeps_all:
            continue
        grid = None if grids is None else grids[video]
        given = Inputs(
            length,
            scores.device,
            top_p,
            scores[inside],
            None if layer_scores is None else layer_scores[:, inside],
            None if last_row_scores is None else last_row_scores[inside],
            None if grid is None else _checked_grid(grid, length),
            None if features is None else features[inside],
            None if frame_seconds is None else frame_seconds[video],
            seed + video,
        )
        part = _select(given, chosen, budget)
        parts.append((inside.start, part))
    return _together(parts, scores.device)


def _together(parts: Sequence[tuple[int, Selection]], device: torch.device) -> Selection:
    """Selections of several videos, each with the place of its video's first token."""
    if len(parts) == 1 and parts[0][0] == 0:
        return parts[0][1]
    if not parts:
        nothing = torch.zeros(1, dtype=torch.bool, device=device)
        return Selection(nothing[:0].long(), nothing[:0], nothing[0])
    return Selection(
        torch.cat([part.indices + start for start, part in parts]),
        torch.cat([part.stage_one for _, part in parts]),
        reduce(torch.logical_or, [part.fallback for _, part in parts]),
    )


def _checked_grid(grid: Grid, n: int) -> Grid:
    if len(grid) != 3 or any(not isinstance(side, int | np.integer) or side < 1 for side in grid):
        raise ValueError(f"grid={grid} must be (frames, rows, columns), each an integer >= 1")
    frames, rows, columns = (int(side) for side in grid)
    if math.prod((frames, rows, columns)) != n:
        raise ValueError(f"grid={grid} must have as many tokens as scores, {n}")
    return frames, rows, columns
