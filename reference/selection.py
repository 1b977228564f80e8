"""Which video tokens the draft model reads: arguments, budgets, one video or several.

:mod:`reference.policies` defines to the last index what each policy keeps; ``specvlm`` is the
paper's (SpecVLM, arXiv 2508.16201, section 3).
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from reference import policies
from reference.cover import shares
from reference.features import checked_features
from reference.policies import COMPARED, NONE, POLICIES, FloatArray, Question, Selection
from reference.spacing import (
    Grid,
    IntArray,
    checked_grid,
    grid_order,
    prune_grid_uniform,
    prune_spatially_uniform,
)

__all__ = [
    "COMPARED",
    "POLICIES",
    "Grid",
    "Selection",
    "grid_order",
    "prune_grid_uniform",
    "prune_spatially_uniform",
    "retain_top_p",
    "select_in_stages",
    "select_per_video",
    "select_video_tokens",
    "video_token_budget",
    "video_token_budgets",
]


def video_token_budget(n: int, retention: float, at_most: int | None = None) -> int:
    """Number of video tokens to keep out of ``n``: ``floor(n * retention + 1e-6)``, at least 1.

    Parameters
    ----------
    n : int
        Number of video tokens, at least 0. Without any the budget is 0.
    retention : float
        Share of the tokens to KEEP, in (0, 1].
    at_most : int, optional
        Never more than so many, at least 1.

    Raises
    ------
    ValueError
        For an argument out of range.
    """
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")
    if not 0 < retention <= 1:
        raise ValueError(f"retention must lie in (0, 1], got {retention}")
    if at_most is not None and at_most < 1:
        raise ValueError(f"at_most must be at least 1, got {at_most}")
    # Without the small addend 1000 * (1 - 0.9) would keep 99 tokens, not 100.
    budget = min(n, max(1, int(n * retention + 1e-6)))
    return budget if at_most is None else min(budget, at_most)


def video_token_budgets(
    lengths: Sequence[int], retention: float, at_most: int | None = None
) -> list[int]:
    """Budget of each of several videos; a limit for all is shared in proportion to their budgets.

    Largest remainders first, ties to the earlier video (:func:`reference.cover.shares`). A limit
    below the number of videos leaves some without a token.

    Parameters and errors are those of :func:`video_token_budget`.
    """
    budgets = [video_token_budget(length, retention) for length in lengths]
    limit = video_token_budget(sum(budgets), 1.0, at_most)
    return shares(limit, budgets)


def retain_top_p(scores: npt.ArrayLike, top_p: float, budget: int) -> IntArray:
    """Stage I: the fewest highest-scored tokens that hold ``top_p`` of the mass, within a budget.

    Parameters
    ----------
    scores : float array, shape [N]
        Finite and not negative; taken as float32.
    top_p : float
        Share of the total mass, in [0, 1]. 0 keeps nothing; 1 keeps every token that adds to the
        float64 sum, so no zeros.
    budget : int
        At most this many tokens, at least 0; the lowest-ranked ones go first.

    Returns
    -------
    int64 array, shape [k1]
        Ascending.

    Raises
    ------
    ValueError
        For scores that are not 1-D, finite and non-negative, or an argument out of range.

    Notes
    -----
    See :mod:`reference.policies` for the exact arithmetic. A parallel scan adds in another order;
    its ``k1`` can differ from this one only where a prefix lies within rounding of the threshold.
    """
    checked = _checked_scores(scores)
    _check_top_p(top_p)
    if budget < 0:
        raise ValueError(f"budget must be at least 0, got {budget}")
    return policies.retain_top_p(checked, top_p, budget)


def select_video_tokens(
    scores: npt.ArrayLike,
    retention: float,
    top_p: float = 0.4,
    policy: str = "specvlm",
    grid: Grid | None = None,
    seed: int = 0,
    features: npt.ArrayLike | None = None,
) -> IntArray:
    """Indices of the kept video tokens, ascending, int64 [K]: see :func:`select_in_stages`."""
    return select_in_stages(scores, retention, top_p, policy, grid, seed, features).indices


def select_in_stages(
    scores: npt.ArrayLike,
    retention: float,
    top_p: float = 0.4,
    policy: str = "specvlm",
    grid: Grid | None = None,
    seed: int = 0,
    features: npt.ArrayLike | None = None,
    at_most: int | None = None,
) -> Selection:
    """Keep exactly ``K = video_token_budget(N, retention, at_most)`` video tokens.

    Several videos count as one here, their tokens in prompt order.

    Parameters
    ----------
    scores : float array, shape [N]
        Score of each video token in prompt order, higher is kept first; finite and not negative,
        taken as float32. Checked under every policy, also those that read only N from it.
    retention : float
        Share of the tokens to KEEP, in (0, 1].
    top_p : float
        Share of the mass that Stage I of ``two-stage`` retains, in [0, 1].
    policy : str
        One of :data:`POLICIES` or :data:`COMPARED`, or ``scorer/selector``
        (:mod:`reference.policies`).
    grid : (frames, rows, columns), optional
        Token grid of the video, with product N. Policies that need one say so, unless N is 0.
    seed : int
        Seeds ``random``, at least 0. For one seed a lower retention keeps a subset.
    features : float array, shape [N, d], optional
        The draft's vision features, finite. Policies that need them say so, unless N is 0.
    at_most : int, optional
        Never more tokens than this, at least 1.

    Returns
    -------
    Selection
        Empty for N = 0. All tokens for K = N, whatever the policy.

    Raises
    ------
    ValueError
        For an argument out of range, an unknown policy, or a grid or features that are missing or
        do not have N tokens.
    """
    checked = _checked_scores(scores)
    budget = video_token_budget(checked.size, retention, at_most)
    return _select(checked, budget, top_p, policy, grid, seed, features)


def _select(
    checked: FloatArray,
    budget: int,
    top_p: float,
    policy: str,
    grid: Grid | None,
    seed: int,
    features: npt.ArrayLike | None,
) -> Selection:
    n = checked.size
    _check_top_p(top_p)
    chosen = policies.find_policy(policy)
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if grid is not None and math.prod(checked_grid(grid)) != n:
        raise ValueError(f"grid must have as many tokens as scores, {n}, got {grid}")
    if n == 0:
        return Selection(NONE, NONE)
    if "grid" in chosen.needs and grid is None:
        raise ValueError(f"grid must be (frames, rows, columns) for policy {policy!r}, got None")
    vectors = None
    if "features" in chosen.needs:
        if features is None:
            raise ValueError(f"features must be an array for policy {policy!r}, got None")
        vectors = checked_features(features, n)
    return chosen.select(Question(checked, budget, top_p, grid, seed, vectors, checked))


def select_per_video(
    scores: npt.ArrayLike,
    video_lengths: Sequence[int],
    retention: float,
    top_p: float = 0.4,
    policy: str = "specvlm",
    grids: Sequence[Grid] | None = None,
    seed: int = 0,
    features: npt.ArrayLike | None = None,
    at_most: int | None = None,
) -> Selection:
    """Give each video of a prompt a budget of its own, so that none is lost beside a louder one.

    Parameters
    ----------
    scores : float array, shape [N]
        Scores of all video tokens, video after video in prompt order.
    video_lengths : sequence of int
        Number of tokens of each video, at least 0 each, N in total.
    grids : sequence of (frames, rows, columns), optional
        One for each video.
    seed : int
        Seeds ``random``: video ``i`` draws from ``seed + i``.
    features : float array, shape [N, d], optional
        In the order of the scores.
    at_most : int, optional
        Of all videos together (:func:`video_token_budgets`).

    Other parameters and errors are those of :func:`select_in_stages`, which is applied to each
    video alone.

    Returns
    -------
    Selection
        Indices count through all videos. K is the sum of the videos' budgets.
    """
    checked = _checked_scores(scores)
    if any(length < 0 for length in video_lengths) or sum(video_lengths) != checked.size:
        raise ValueError(
            f"video_lengths must be at least 0 each and {checked.size} in total, "
            f"got {list(video_lengths)}"
        )
    if grids is not None and len(grids) != len(video_lengths):
        raise ValueError(
            f"grids must have one entry for each of the {len(video_lengths)} videos, "
            f"got {len(grids)}"
        )
    vectors = None if features is None else checked_features(features, checked.size)
    budgets = video_token_budgets(video_lengths, retention, at_most)
    stage_one, stage_two, fallbacks, start = [NONE], [NONE], 0, 0
    for video, (length, budget) in enumerate(zip(video_lengths, budgets, strict=True)):
        inside = slice(start, start + length)
        start += length
        if budget == 0 and policy != "none":
            continue
        part = _select(
            checked[inside],
            budget,
            top_p,
            policy,
            None if grids is None else grids[video],
            seed + video,
            None if vectors is None else vectors[inside],
        )
        stage_one.append(part.stage_one + inside.start)
        stage_two.append(part.stage_two + inside.start)
        fallbacks += part.fallbacks
    return Selection(np.concatenate(stage_one), np.concatenate(stage_two), fallbacks)


def _checked_scores(scores: npt.ArrayLike) -> FloatArray:
    # A float64 score beyond float32 becomes infinite here and is reported below.
    with np.errstate(over="ignore"):
        array = np.asarray(scores).astype(np.float32)
    if array.ndim != 1:
        raise ValueError(f"scores must have one axis, got shape {array.shape}")
    good = np.isfinite(array) & (array >= 0)
    if not good.all():
        at = int(np.argmin(good))
        raise ValueError(f"scores must be finite and at least 0, got {array[at]} at index {at}")
    return array


def _check_top_p(top_p: float) -> None:
    if not 0 <= top_p <= 1:
        raise ValueError(f"top_p must lie in [0, 1], got {top_p}")
