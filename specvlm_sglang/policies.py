"""What a pruning policy is: a function of its own, or a scorer and a selector; their decorators.

The project's own stand in `specvlm_sglang.pruning.shipped`, `scorers` and `selectors` beside it; a
user's come from one Python file, named by ``--specvlm-policy-file`` or ``SPECVLM_POLICY_FILE``.
`specvlm_sglang.pruning.registry` finds all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Kept = (
        torch.Tensor
        | tuple[torch.Tensor, torch.Tensor]
        | tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    )
    Choose = Callable[..., Kept]

ATTENTION = frozenset({"scores", "layer_scores", "last_row_scores"})
"""Inputs that the target's attention is scored for."""
OF_ONE_VIDEO = frozenset({"grid", "features", "frame_seconds"})
"""Inputs that describe one video: a prompt's videos are then selected from one by one."""
INPUTS = ATTENTION | OF_ONE_VIDEO | {"seed"}
"""What a policy, scorer or selector may ask for; ``top_p`` is always there."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a policy may look at, of one video or of all videos of a prompt as one.

    All tensors are on ``device``. What was not asked for is None, ``scores`` then zeros.

    Attributes
    ----------
    n
        N, the number of video tokens, at least 1.
    device
        Where the kept tokens are wanted.
    top_p
        The setting of that name, in [0, 1].
    scores
        float32 ``[N]``, the target's mean attention to each video token in prompt order, over
        layers, heads and query rows: finite and at least 0; zeros where it is no use.
    layer_scores
        float32 ``[layers, N]``, the same of each layer alone; in the order of the layers.
    last_row_scores
        float32 ``[N]``, the same of the prompt's last token alone.
    grid
        ``(frames, rows, columns)`` with product N.
    features
        ``[N, d]``, the draft's vision features (after its projector), finite.
    frame_seconds
        float32 ``[frames]``: when each frame of the grid begins.
    seed
        For those that draw at random.
    """

    n: int
    device: torch.device
    top_p: float
    scores: torch.Tensor
    layer_scores: torch.Tensor | None = None
    last_row_scores: torch.Tensor | None = None
    grid: tuple[int, int, int] | None = None
    features: torch.Tensor | None = None
    frame_seconds: torch.Tensor | None = None
    seed: int = 0


@dataclass(frozen=True)
class Policy:
    """A pruning policy and what it declares.

    Attributes
    ----------
    name
        As given to ``--specvlm-policy`` and in requests.
    choose
        Called as ``choose(inputs, budget)`` (`policy`).
    needs
        Which of `INPUTS` it asks for; attention is scored, and features are encoded, for nobody
        else.
    keeps_all
        Whether it keeps every token, whatever the retention.
    merges
        Whether dropped tokens are mixed into the kept ones.
    checks
        Whether its result is checked, as that of a user's own.
    """

    name: str
    choose: Choose
    needs: frozenset[str] = frozenset()
    keeps_all: bool = False
    merges: bool = False
    checks: bool = False

    @property
    def needs_scores(self) -> bool:
        """Whether it reads the target's attention."""
        return bool(self.needs & ATTENTION)

    @property
    def needs_grid(self) -> bool:
        """Whether it needs ``(frames, rows, columns)``."""
        return "grid" in self.needs

    @property
    def needs_seed(self) -> bool:
        """Whether it draws at random."""
        return "seed" in self.needs

    @property
    def needs_features(self) -> bool:
        """Whether the draft's vision features are wanted before the selection."""
        return self.merges or "features" in self.needs

    @property
    def per_video(self) -> bool:
        """Whether each of several videos gets a budget of its own."""
        return bool(self.needs & OF_ONE_VIDEO)


@dataclass(frozen=True)
class Scorer:
    """How much each video token is worth; see `scorer`."""

    name: str
    score: Callable[[Inputs], torch.Tensor]
    needs: frozenset[str] = frozenset()
    checks: bool = False


@dataclass(frozen=True)
class Selector:
    """Which tokens are kept, given what each is worth; see `selector`."""

    name: str
    select: Choose
    needs: frozenset[str] = frozenset()
    checks: bool = False


def policy(
    name: str,
    *,
    needs: Iterable[str] | None = None,
    needs_scores: bool = False,
    needs_grid: bool = False,
    needs_seed: bool = False,
    keeps_all: bool = False,
) -> Callable[[Choose], Choose]:
    """Make a function a pruning policy.

    With ``needs`` the function is called as ``function(inputs, budget)``, without it as
    ``function(scores, budget, grid, top_p)``. Either returns the kept tokens: int64 ``[budget]``,
    distinct indices below N in any order, on the device of its inputs.

    - ``inputs``: `Inputs`, with what ``needs`` names.
    - ``budget``: how many tokens are kept, 1 to N - 1.
    - ``scores``, ``grid``, ``top_p``: those of `Inputs`; without ``needs_scores`` zeros, without
      ``needs_grid`` None. With ``needs_seed`` also ``seed=``, an int.

    To keep a GPU busy it should not read values back to the host (``.item()``, ``.tolist()``,
    boolean indexing).

    Parameters
    ----------
    name
        Lower-case letters, digits and hyphens; none of the project's own.
    needs
        Some of `INPUTS`.
    needs_scores, needs_grid, needs_seed
        The needs of a function of four arguments.
    keeps_all
        See `Policy`.

    Raises
    ------
    ValueError
        A name of another form, an unknown need, or both ways to state needs.
    """
    _check_name("policy", name)
    flags = {"scores": needs_scores, "grid": needs_grid, "seed": needs_seed}
    old = frozenset(need for need, wanted in flags.items() if wanted)
    if needs is not None and old:
        raise ValueError(f"policy {name!r}: needs_{min(old)} is for functions without needs")
    asked = old if needs is None else _checked_needs("policy", name, needs)

    def mark(function: Choose) -> Choose:
        choose = function if needs is not None else _of_four_arguments(function, asked)
        function.specvlm_policy = Policy(name, choose, asked, keeps_all)  # type: ignore[attr-defined]
        return function

    return mark


def scorer(
    name: str, *, needs: Iterable[str] = ()
) -> Callable[[Callable[[Inputs], torch.Tensor]], Callable[[Inputs], torch.Tensor]]:
    """Make a function a scorer: with any selector it is the policy ``name/selector``.

    The function is called as ``function(inputs)`` and returns float32 ``[N]``: what each token is
    worth, at least 0. Where all of it is 0, or not finite, evenly spaced tokens are kept.

    Parameters
    ----------
    name
        Lower-case letters, digits and hyphens; none of the project's scorers.
    needs
        Some of `INPUTS`.

    Raises
    ------
    ValueError
        A name of another form, or an unknown need.
    """
    _check_name("scorer", name)
    asked = _checked_needs("scorer", name, needs)

    def mark(function: Callable[[Inputs], torch.Tensor]) -> Callable[[Inputs], torch.Tensor]:
        function.specvlm_scorer = Scorer(name, function, asked)  # type: ignore[attr-defined]
        return function

    return mark


def selector(name: str, *, needs: Iterable[str] = ()) -> Callable[[Choose], Choose]:
    """Make a function a selector: with any scorer it is the policy ``scorer/name``.

    The function is called as ``function(worth, inputs, budget)``, ``worth`` float32 ``[N]``, finite
    and at least 0. It returns what a policy returns (`policy`). Equal worth should go to the lower
    index.

    Parameters
    ----------
    name
        Lower-case letters, digits and hyphens; none of the project's selectors.
    needs
        Some of `INPUTS`.

    Raises
    ------
    ValueError
        A name of another form, or an unknown need.
    """
    _check_name("selector", name)
    asked = _checked_needs("selector", name, needs)

    def mark(function: Choose) -> Choose:
        function.specvlm_selector = Selector(name, function, asked)  # type: ignore[attr-defined]
        return function

    return mark


def _of_four_arguments(function: Choose, needs: frozenset[str]) -> Choose:
    def choose(inputs: Inputs, budget: int) -> Kept:
        grid = inputs.grid if "grid" in needs else None
        asked = inputs.scores, budget, grid, inputs.top_p
        return function(*asked, seed=inputs.seed) if "seed" in needs else function(*asked)

    return choose


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{kind} name {name!r} must be lower-case words joined by hyphens")


def _checked_needs(kind: str, name: str, needs: Iterable[str]) -> frozenset[str]:
    asked = frozenset(needs)
    unknown = sorted(asked - INPUTS)
    if unknown:
        raise ValueError(
            f"{kind} {name!r} needs {unknown[0]!r}; it may need {', '.join(sorted(INPUTS))}"
        )
    return asked


def check_retention(value: Any, name: str) -> None:
    """Raise ``ValueError`` naming ``name`` unless ``value`` is a share in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"{name}={value!r} must be a number in (0, 1], the share that is kept")


def check_tokens(value: Any, name: str) -> None:
    """Raise ``ValueError`` naming ``name`` unless ``value`` is a number of tokens, or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name}={value!r} must be an integer of at least 1, a number of tokens")


def check_share(value: Any, name: str) -> None:
    """Raise ``ValueError`` naming ``name`` unless ``value`` is a share in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r} must be a number in [0, 1]")
