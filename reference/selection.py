"""Which video tokens the draft model reads (SpecVLM, arXiv 2508.16201, section 3).

Stage I keeps the highest-scored tokens that together hold ``top_p`` of the video's attention mass.
Stage II fills the rest of the budget with evenly spaced tokens out of those that remain.

Everything after the scores is defined to the last index, so that another implementation can be
compared with this one index by index:

* Scores are float32. They are ranked in descending order, ties by lower index.
* Mass is summed over the ranked scores from left to right in float64. Stage I keeps the smallest
  ``k >= 0`` with ``prefix[k] >= top_p * prefix[N]``, where ``prefix[0] = 0`` and the product is
  float64. Hence ``top_p = 0`` keeps nothing, and neither do scores that are all zero.
* Spacing (:mod:`reference.spacing`) uses integers only.

The policies, by name:

================  ==============================================================================
specvlm           Stage I, then Stage II over the remaining tokens in prompt order
specvlm-grid      Stage I, then Stage II spaced over frames and over each frame's area
attention         the K highest scores
uniform           Stage II alone, in prompt order
uniform-grid      Stage II alone, over frames and over each frame's area
random            the first K of a permutation drawn from ``seed``
window-front      the first K tokens
window-middle     K consecutive tokens from ``(N - K) // 2``
window-back       the last K tokens
frames            whole frames, evenly spaced; the last one that is kept is thinned to fit K
none              all N tokens, whatever the retention
================  ==============================================================================

Policies that read scores fall back to Stage II alone when all scores are zero: ``specvlm`` and
``attention`` to ``uniform``, ``specvlm-grid`` to ``uniform-grid``. The result says so.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reference.spacing import (
    Grid,
    IntArray,
    checked_grid,
    grid_order,
    prune_grid_uniform,
    prune_spatially_uniform,
)

__all__ = [
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
]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Selection:
    """The kept video tokens of one request, and why each was kept.

    Attributes
    ----------
    stage_one : int64 array, shape [k1]
        Tokens kept for their score, ascending.
    stage_two : int64 array, shape [k2]
        Tokens kept whatever their score, ascending; disjoint from ``stage_one``.
    fallbacks : int
        Videos whose scores were all zero although the policy reads them: 0 or 1 from
        :func:`select_in_stages`, up to the number of videos from :func:`select_per_video`.
    """

    stage_one: IntArray
    stage_two: IntArray
    fallbacks: int = 0

    @property
    def indices(self) -> IntArray:
        """All kept tokens, ascending, int64 [k1 + k2]."""
        return np.sort(np.concatenate([self.stage_one, self.stage_two]))


def video_token_budget(n: int, retention: float) -> int:
    """Number of video tokens to keep out of ``n``: ``floor(n * retention + 1e-6)``, at least 1.

    Parameters
    ----------
    n : int
        Number of video tokens, at least 0. Without any the budget is 0.
    retention : float
        Share of the tokens to KEEP, in (0, 1].

    Raises
    ------
    ValueError
        For an argument out of range.
    """
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")
    if not 0 < retention <= 1:
        raise ValueError(f"retention must lie in (0, 1], got {retention}")
    # Without the small addend 1000 * (1 - 0.9) would keep 99 tokens, not 100.
    return min(n, max(1, int(n * retention + 1e-6)))


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
    See the module's docstring for the exact arithmetic. A parallel scan adds in another order; its
    ``k1`` can differ from this one only where a prefix lies within rounding of the threshold.
    """
    checked = _checked_scores(scores)
    _check_top_p(top_p)
    if budget < 0:
        raise ValueError(f"budget must be at least 0, got {budget}")
    ranked = _rank(checked)
    prefix = np.concatenate([[0.0], np.cumsum(checked[ranked], dtype=np.float64)])
    k1 = int(np.searchsorted(prefix, top_p * prefix[-1], side="left"))
    return np.sort(ranked[: min(k1, budget)])


def select_video_tokens(
    scores: npt.ArrayLike,
    retention: float,
    top_p: float = 0.4,
    policy: str = "specvlm",
    grid: Grid | None = None,
    seed: int = 0,
) -> IntArray:
    """Indices of the kept video tokens, ascending, int64 [K]: see :func:`select_in_stages`."""
    return select_in_stages(scores, retention, top_p, policy, grid, seed).indices


def select_in_stages(
    scores: npt.ArrayLike,
    retention: float,
    top_p: float = 0.4,
    policy: str = "specvlm",
    grid: Grid | None = None,
    seed: int = 0,
) -> Selection:
    """Keep exactly ``K = video_token_budget(N, retention)`` video tokens by a named policy.

    Several videos count as one here, their tokens in prompt order.

    Parameters
    ----------
    scores : float array, shape [N]
        Score of each video token in prompt order, higher is kept first; finite and not negative,
        taken as float32. Checked under every policy, also those that read only N from it.
    retention : float
        Share of the tokens to KEEP, in (0, 1].
    top_p : float
        Share of the mass that Stage I of ``specvlm`` and ``specvlm-grid`` retains, in [0, 1].
    policy : str
        One of :data:`POLICIES`; the module's docstring describes them.
    grid : (frames, rows, columns), optional
        Token grid of the video, with product N. Needed by ``specvlm-grid``, ``uniform-grid`` and
        ``frames`` unless N is 0.
    seed : int
        Seeds ``random``, at least 0. For one seed a lower retention keeps a subset.

    Returns
    -------
    Selection
        Empty for N = 0. All tokens for K = N, whatever the policy.

    Raises
    ------
    ValueError
        For an argument out of range, an unknown policy, or a grid that is missing or does not
        have N tokens.
    """
    checked = _checked_scores(scores)
    n = checked.size
    budget = video_token_budget(n, retention)
    _check_top_p(top_p)
    if policy not in _POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if grid is not None and math.prod(checked_grid(grid)) != n:
        raise ValueError(f"grid must have as many tokens as scores, {n}, got {grid}")
    if n == 0:
        return Selection(_NONE, _NONE)
    chosen = _POLICIES[policy]
    if chosen.needs_grid and grid is None:
        raise ValueError(f"grid must be (frames, rows, columns) for policy {policy!r}, got None")
    kept = chosen.select(_Question(checked, budget, top_p, grid, seed))
    no_mass = chosen.needs_scores and not checked.any()
    return Selection(kept.stage_one, kept.stage_two, int(no_mass))


def select_per_video(
    scores: npt.ArrayLike,
    video_lengths: Sequence[int],
    retention: float,
    top_p: float = 0.4,
    policy: str = "specvlm",
    grids: Sequence[Grid] | None = None,
    seed: int = 0,
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
    stage_one, stage_two, fallbacks, start = [_NONE], [_NONE], 0, 0
    for video, length in enumerate(video_lengths):
        grid = None if grids is None else grids[video]
        part = select_in_stages(
            checked[start : start + length], retention, top_p, policy, grid, seed + video
        )
        stage_one.append(part.stage_one + start)
        stage_two.append(part.stage_two + start)
        fallbacks += part.fallbacks
        start += length
    return Selection(np.concatenate(stage_one), np.concatenate(stage_two), fallbacks)


_NONE: IntArray = np.empty(0, dtype=np.int64)
_NONE.setflags(write=False)


@dataclass(frozen=True, eq=False)
class _Question:
    """What a policy is asked: checked arguments of :func:`select_in_stages`, N at least 1."""

    scores: FloatArray
    budget: int
    top_p: float
    grid: Grid | None
    seed: int

    @property
    def tokens(self) -> IntArray:
        return np.arange(self.scores.size, dtype=np.int64)


@dataclass(frozen=True)
class _Policy:
    select: Callable[[_Question], Selection]
    needs_scores: bool
    needs_grid: bool


_POLICIES: dict[str, _Policy] = {}


def _policy(
    name: str, *, needs_scores: bool = False, needs_grid: bool = False
) -> Callable[[Callable[[_Question], Selection]], Callable[[_Question], Selection]]:
    """Register a policy under its name."""

    def register(select: Callable[[_Question], Selection]) -> Callable[[_Question], Selection]:
        _POLICIES[name] = _Policy(select, needs_scores, needs_grid)
        return select

    return register


def _fill_up(asked: _Question, stage_one: IntArray, grid: Grid | None) -> Selection:
    """Stage II: what is left of the budget, evenly spaced over the tokens that remain."""
    remains = np.ones(asked.scores.size, dtype=np.bool_)
    remains[stage_one] = False
    candidates = np.flatnonzero(remains)
    count = asked.budget - stage_one.size
    if grid is None:
        return Selection(stage_one, prune_spatially_uniform(candidates, count))
    return Selection(stage_one, prune_grid_uniform(candidates, count, grid))


def _window(asked: _Question, start: int) -> Selection:
    return Selection(_NONE, asked.tokens[start : start + asked.budget])


@_policy("specvlm", needs_scores=True)
def _specvlm(asked: _Question) -> Selection:
    # Without mass Stage I keeps nothing by its own definition.
    return _fill_up(asked, retain_top_p(asked.scores, asked.top_p, asked.budget), None)


@_policy("specvlm-grid", needs_scores=True, needs_grid=True)
def _specvlm_grid(asked: _Question) -> Selection:
    return _fill_up(asked, retain_top_p(asked.scores, asked.top_p, asked.budget), asked.grid)


@_policy("attention", needs_scores=True)
def _attention(asked: _Question) -> Selection:
    if not asked.scores.any():
        return _uniform(asked)
    return Selection(np.sort(_rank(asked.scores)[: asked.budget]), _NONE)


@_policy("uniform")
def _uniform(asked: _Question) -> Selection:
    return _fill_up(asked, _NONE, None)


@_policy("uniform-grid", needs_grid=True)
def _uniform_grid(asked: _Question) -> Selection:
    return _fill_up(asked, _NONE, asked.grid)


@_policy("random")
def _random(asked: _Question) -> Selection:
    # A prefix of one permutation, so that lower retentions nest.
    drawn = np.random.default_rng(asked.seed).permutation(asked.tokens)
    return Selection(_NONE, np.sort(drawn[: asked.budget]))


@_policy("window-front")
def _window_front(asked: _Question) -> Selection:
    return _window(asked, 0)


@_policy("window-middle")
def _window_middle(asked: _Question) -> Selection:
    return _window(asked, (asked.scores.size - asked.budget) // 2)


@_policy("window-back")
def _window_back(asked: _Question) -> Selection:
    return _window(asked, asked.scores.size - asked.budget)


@_policy("frames", needs_grid=True)
def _frames(asked: _Question) -> Selection:
    assert asked.grid is not None
    return Selection(_NONE, _whole_frames(asked.tokens.reshape(asked.grid[0], -1), asked.budget))


@_policy("none")
def _everything(asked: _Question) -> Selection:
    return Selection(_NONE, asked.tokens)


POLICIES: tuple[str, ...] = tuple(_POLICIES)
"""Every policy; the module's docstring says what they do."""


def _whole_frames(tokens: IntArray, budget: int) -> IntArray:
    """Evenly spaced rows of ``tokens`` [frames, area], the last of them thinned to the budget."""
    frames, area = tokens.shape
    kept = prune_spatially_uniform(np.arange(frames), -(-budget // area))
    whole = tokens[kept[:-1]].reshape(-1)
    return np.concatenate([whole, prune_spatially_uniform(tokens[kept[-1]], budget - whole.size)])


def _rank(scores: FloatArray) -> IntArray:
    """Indices by descending score, ties by lower index."""
    return np.argsort(-scores, kind="stable")


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
