"""What each pruning policy keeps of one video, to the last index.

Another implementation can be compared with this one index by index:

* Scores are float32. They are ranked in descending order, ties by lower index.
* Mass is summed over the ranked scores from left to right in float64. Stage I keeps the smallest
  ``k >= 0`` with ``prefix[k] >= top_p * prefix[N]``, where ``prefix[0] = 0`` and the product is
  float64. Hence ``top_p = 0`` keeps nothing, and neither do scores that are all zero.
* Spacing (:mod:`reference.spacing`) uses integers only, and so does similarity
  (:mod:`reference.features`).

A scorer says how much each token is worth, a selector picks K of them. Every pair is a policy,
``scorer/selector``; those with a name of their own:

=======================  ======================================================================
specvlm                  ``attention/two-stage`` (SpecVLM)
specvlm-grid             ``attention/two-stage-grid``
attention                ``attention/top-k``
uniform                  Stage II alone, in prompt order
uniform-grid             Stage II alone, over frames and over each frame's area
random                   the first K of a permutation drawn from ``seed``
window-front             the first K tokens
window-middle            K consecutive tokens from ``(N - K) // 2``
window-back              the last K tokens
frames                   whole frames, evenly spaced; the last one kept is thinned to fit K
none                     all N tokens, whatever the retention
attention-spread         ``attention/spread``
attention-change-spread  ``attention-change/spread``
scope                    ``root-attention/cover`` (SCOPE with alpha 0.5; ``attention/cover`` is 1)
floc                     ``equal/cover`` (FLoC)
change                   ``change/two-stage``
evs                      ``evs/top-k`` (EVS, arXiv 2510.14624; K is the caller's)
specvlm-spread           ``attention-change/top-p-spread``: Stage I with half of ``top_p`` and at
                         most half of K, then spread in place of even spacing
=======================  ======================================================================

Where a scorer's result is all zero, or the attention that a selector reads, there is nothing to
rank by: evenly spaced tokens are kept, and the selection says so. `COMPARED` are rules of other
authors for the comparison alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from reference.cover import cover, max_min
from reference.curvature import most_unusual_tokens
from reference.features import STEPS, temporal_change
from reference.spacing import (
    Grid,
    IntArray,
    prune_grid_uniform,
    prune_spatially_uniform,
)
from reference.spread import spread
from reference.vidcom2 import least_typical_tokens

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
        Videos whose scores were all zero although the policy ranks by them: 0 or 1 for one video.
    """

    stage_one: IntArray
    stage_two: IntArray
    fallbacks: int = 0

    @property
    def indices(self) -> IntArray:
        """All kept tokens, ascending, int64 [k1 + k2]."""
        return np.sort(np.concatenate([self.stage_one, self.stage_two]))


NONE: IntArray = np.empty(0, dtype=np.int64)
NONE.setflags(write=False)


@dataclass(frozen=True, eq=False)
class Question:
    """What a policy is asked about one video: checked arguments, N at least 1, K below N.

    Attributes
    ----------
    scores : float32 array, shape [N]
        The target's attention, or what a scorer made of it.
    budget : int
        K.
    top_p : float
    grid : (frames, rows, columns) or None
    seed : int
    features : float32 array, shape [N, d], or None
    attention : float32 array, shape [N]
        The target's, whatever a scorer made of it.
    """

    scores: FloatArray
    budget: int
    top_p: float
    grid: Grid | None
    seed: int
    features: FloatArray | None
    attention: FloatArray

    @property
    def tokens(self) -> IntArray:
        """Every token's index."""
        return np.arange(self.scores.size, dtype=np.int64)

    @property
    def known_grid(self) -> Grid:
        """The grid, which a policy that needs one has."""
        assert self.grid is not None
        return self.grid

    @property
    def known_features(self) -> FloatArray:
        """The features, which a policy that needs them has."""
        assert self.features is not None
        return self.features


@dataclass(frozen=True)
class Scorer:
    """How much each token is worth: float32 ``[N]``, at least 0."""

    score: Callable[[Question], FloatArray]
    needs: frozenset[str]


@dataclass(frozen=True)
class Selector:
    """Which tokens are kept, given their worth as ``scores``."""

    select: Callable[[Question], Selection]
    needs: frozenset[str]


@dataclass(frozen=True)
class Policy:
    """What a policy keeps, and what it needs: "scores", "grid", "features", "seed"."""

    select: Callable[[Question], Selection]
    needs: frozenset[str]


SCORERS: dict[str, Scorer] = {}
SELECTORS: dict[str, Selector] = {}
_POLICIES: dict[str, Policy] = {}
_COMPARED: dict[str, Policy] = {}

_Score = Callable[[Question], FloatArray]
_Select = Callable[[Question], Selection]


def _scorer(name: str, *needs: str) -> Callable[[_Score], _Score]:
    def register(score: _Score) -> _Score:
        SCORERS[name] = Scorer(score, frozenset(needs))
        return score

    return register


def _selector(name: str, *needs: str) -> Callable[[_Select], _Select]:
    def register(select: _Select) -> _Select:
        SELECTORS[name] = Selector(select, frozenset(needs))
        return select

    return register


def _policy(
    name: str, *needs: str, table: dict[str, Policy] = _POLICIES
) -> Callable[[_Select], _Select]:
    def register(select: _Select) -> _Select:
        table[name] = Policy(select, frozenset(needs))
        return select

    return register


def compose(scorer: str, selector: str) -> Policy:
    """Return the policy ``scorer/selector``."""
    worth, pick = SCORERS[scorer], SELECTORS[selector]

    def select(asked: Question) -> Selection:
        scores = worth.score(asked)
        ranked = replace(asked, scores=scores)
        useless = "scores" in pick.needs and not asked.attention.any()
        if useless or not scores.any():
            # Two-stage spaces evenly by its own definition; the grid's over the grid.
            evenly = _two_stage_grid if pick.select is _two_stage_grid else _uniform
            return replace(evenly(ranked), fallbacks=1)
        kept = pick.select(ranked)
        return kept if scorer != "equal" else Selection(NONE, kept.indices)

    return Policy(select, worth.needs | pick.needs)


def find_policy(name: str) -> Policy:
    """Return the policy of this name, or of the form ``scorer/selector``.

    Raises
    ------
    ValueError
        There is none.
    """
    scorer, _, selector = name.partition("/")
    if scorer in SCORERS and selector in SELECTORS:
        return compose(scorer, selector)
    found = _POLICIES.get(name) or _COMPARED.get(name)
    if found is None:
        raise ValueError(
            f"policy must be one of {', '.join((*POLICIES, *COMPARED))}, or SCORER/SELECTOR of "
            f"{', '.join(SCORERS)} and {', '.join(SELECTORS)}, got {name!r}"
        )
    return found


@_scorer("attention", "scores")
def _attention(asked: Question) -> FloatArray:
    return asked.scores


@_scorer("root-attention", "scores")
def _root_attention(asked: Question) -> FloatArray:
    return np.sqrt(asked.scores)


@_scorer("change", "grid", "features")
def _change(asked: Question) -> FloatArray:
    return temporal_change(asked.known_features, asked.known_grid)


@_scorer("attention-change", "scores", "grid", "features")
def _attention_change(asked: Question) -> FloatArray:
    # One step more than the change: what stands still ranks by its attention alone.
    change = _change(asked).astype(np.float64) + 1 / STEPS
    return np.sqrt(asked.scores.astype(np.float64) * change).astype(np.float32)


@_scorer("evs", "grid", "features")
def _evs(asked: Question) -> FloatArray:
    frames = asked.known_grid[0]
    scores = _change(asked).reshape(frames, -1)
    scores[0] = 255
    return scores.reshape(-1)


@_scorer("equal")
def _equal(asked: Question) -> FloatArray:
    return np.ones(asked.scores.size, np.float32)


@_selector("two-stage")
def _two_stage(asked: Question) -> Selection:
    return _fill_up(asked, retain_top_p(asked.scores, asked.top_p, asked.budget), None)


@_selector("two-stage-grid", "grid")
def _two_stage_grid(asked: Question) -> Selection:
    return _fill_up(asked, retain_top_p(asked.scores, asked.top_p, asked.budget), asked.grid)


@_selector("top-k")
def _top_k(asked: Question) -> Selection:
    return Selection(np.sort(rank(asked.scores)[: asked.budget]), NONE)


@_selector("spread", "grid")
def _spread(asked: Question) -> Selection:
    return Selection(spread(asked.scores, asked.budget, asked.known_grid), NONE)


@_selector("top-p-spread", "scores", "grid")
def _top_p_spread(asked: Question) -> Selection:
    # Stage I ranks by the attention, whatever ranks the rest.
    stage_one = retain_top_p(asked.attention, asked.top_p / 2, max(1, asked.budget // 2))
    kept = spread(asked.scores, asked.budget, asked.known_grid, stage_one)
    return Selection(stage_one, np.setdiff1d(kept, stage_one))


@_selector("cover", "grid", "features")
def _cover(asked: Question) -> Selection:
    kept = cover(asked.scores, asked.known_features, asked.budget, asked.known_grid)
    return Selection(kept, NONE)


_NAMED = {
    "specvlm": ("attention", "two-stage"),
    "specvlm-grid": ("attention", "two-stage-grid"),
    "attention": ("attention", "top-k"),
}
_NAMED_LATER = {
    "attention-spread": ("attention", "spread"),
    "attention-change-spread": ("attention-change", "spread"),
    "scope": ("root-attention", "cover"),
    "floc": ("equal", "cover"),
    "change": ("change", "two-stage"),
    "evs": ("evs", "top-k"),
    "specvlm-spread": ("attention-change", "top-p-spread"),
}
_POLICIES.update({name: compose(*pair) for name, pair in _NAMED.items()})


@_policy("uniform")
def _uniform(asked: Question) -> Selection:
    return _fill_up(asked, NONE, None)


@_policy("uniform-grid", "grid")
def _uniform_grid(asked: Question) -> Selection:
    return _fill_up(asked, NONE, asked.grid)


@_policy("random", "seed")
def _random(asked: Question) -> Selection:
    # A prefix of one permutation, so that lower retentions nest.
    drawn = np.random.default_rng(asked.seed).permutation(asked.tokens)
    return Selection(NONE, np.sort(drawn[: asked.budget]))


@_policy("window-front")
def _window_front(asked: Question) -> Selection:
    return _window(asked, 0)


@_policy("window-middle")
def _window_middle(asked: Question) -> Selection:
    return _window(asked, (asked.scores.size - asked.budget) // 2)


@_policy("window-back")
def _window_back(asked: Question) -> Selection:
    return _window(asked, asked.scores.size - asked.budget)


@_policy("frames", "grid")
def _frames(asked: Question) -> Selection:
    tokens = asked.tokens.reshape(asked.known_grid[0], -1)
    return Selection(NONE, _whole_frames(tokens, asked.budget))


@_policy("none")
def _everything(asked: Question) -> Selection:
    return Selection(NONE, asked.tokens)


_POLICIES.update({name: compose(*pair) for name, pair in _NAMED_LATER.items()})


@_policy("divprune", "features", table=_COMPARED)
def _divprune(asked: Question) -> Selection:
    return Selection(NONE, max_min(asked.known_features, asked.budget))


@_policy("v-cast", "grid", "features", table=_COMPARED)
def _v_cast(asked: Question) -> Selection:
    kept = most_unusual_tokens(asked.known_features, asked.budget, asked.known_grid)
    return Selection(NONE, kept)


@_policy("vidcom2", "grid", "features", table=_COMPARED)
def _vidcom2(asked: Question) -> Selection:
    kept = least_typical_tokens(asked.known_features, asked.budget, asked.known_grid)
    return Selection(NONE, kept)


POLICIES: tuple[str, ...] = tuple(_POLICIES)
"""Every policy that ships; the module's docstring says what they do."""
COMPARED: tuple[str, ...] = tuple(_COMPARED)
"""Not served: DivPrune (CVPR 2025) and V-CAST as their authors' code has them, VidCom2 but for the
rounding."""


def retain_top_p(scores: FloatArray, top_p: float, budget: int) -> IntArray:
    """Stage I on checked arguments: see :func:`reference.selection.retain_top_p`."""
    ranked = rank(scores)
    prefix = np.concatenate([[0.0], np.cumsum(scores[ranked], dtype=np.float64)])
    k1 = int(np.searchsorted(prefix, top_p * prefix[-1], side="left"))
    return np.sort(ranked[: min(k1, budget)])


def rank(scores: FloatArray) -> IntArray:
    """Indices by descending score, ties by lower index."""
    return np.argsort(-scores, kind="stable")


def _fill_up(asked: Question, stage_one: IntArray, grid: Grid | None) -> Selection:
    """Stage II: what is left of the budget, evenly spaced over the tokens that remain."""
    remains = np.ones(asked.scores.size, dtype=np.bool_)
    remains[stage_one] = False
    candidates = np.flatnonzero(remains)
    count = asked.budget - stage_one.size
    if grid is None:
        return Selection(stage_one, prune_spatially_uniform(candidates, count))
    return Selection(stage_one, prune_grid_uniform(candidates, count, grid))


def _window(asked: Question, start: int) -> Selection:
    return Selection(NONE, asked.tokens[start : start + asked.budget])


def _whole_frames(tokens: IntArray, budget: int) -> IntArray:
    """Evenly spaced rows of ``tokens`` [frames, area], the last of them thinned to the budget."""
    frames, area = tokens.shape
    kept = prune_spatially_uniform(np.arange(frames), -(-budget // area))
    whole = tokens[kept[:-1]].reshape(-1)
    return np.concatenate([whole, prune_spatially_uniform(tokens[kept[-1]], budget - whole.size)])
