"""What a pruning policy declares; the decorator that makes a function one.

The project's own stand in `specvlm_sglang.pruning.shipped`; a user's come from one Python file,
named by ``--specvlm-policy-file`` or ``SPECVLM_POLICY_FILE``. `specvlm_sglang.pruning.registry`
finds both.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Kept = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
    Choose = Callable[..., Kept]

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Policy:
    """A pruning policy and what it declares.

    Attributes
    ----------
    name
        As given to ``--specvlm-policy`` and in requests.
    choose
        The decorated function.
    needs_scores
        Whether it reads the target's attention; otherwise none is computed for it.
    needs_grid
        Whether it needs ``(frames, rows, columns)``; a prompt's videos are then selected from one
        by one, each with a budget of its own.
    needs_seed
        Whether it draws at random.
    keeps_all
        Whether it keeps every token, whatever the retention.
    """

    name: str
    choose: Choose
    needs_scores: bool = False
    needs_grid: bool = False
    needs_seed: bool = False
    keeps_all: bool = False


def policy(
    name: str,
    *,
    needs_scores: bool = False,
    needs_grid: bool = False,
    needs_seed: bool = False,
    keeps_all: bool = False,
) -> Callable[[Choose], Choose]:
    """Make a function a pruning policy.

    The function is called as ``function(scores, budget, grid, top_p)`` and returns the kept
    tokens: int64 ``[budget]``, distinct indices below N in any order, on the device of ``scores``.

    - ``scores``: float32 ``[N]``, the target's mean attention to each video token in prompt order,
      finite and at least 0; zeros without ``needs_scores`` or where the attention is no use.
    - ``budget``: how many tokens are kept, 1 to N - 1.
    - ``grid``: ``(frames, rows, columns)`` with product N, or None without ``needs_grid``.
    - ``top_p``: the setting of that name.
    - with ``needs_seed`` also ``seed=``, an int.

    To keep a GPU busy it should not read values back to the host (``.item()``, ``.tolist()``,
    boolean indexing).

    Parameters
    ----------
    name
        Lower-case letters, digits and hyphens; none of the project's own.
    needs_scores, needs_grid, needs_seed, keeps_all
        See `Policy`.

    Raises
    ------
    ValueError
        A name of another form.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"policy name {name!r} must be lower-case words joined by hyphens")

    def mark(function: Choose) -> Choose:
        function.specvlm_policy = Policy(  # type: ignore[attr-defined]
            name, function, needs_scores, needs_grid, needs_seed, keeps_all
        )
        return function

    return mark


def check_retention(value: Any, name: str) -> None:
    """Raise ``ValueError`` naming ``name`` unless ``value`` is a share in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"{name}={value!r} must be a number in (0, 1], the share that is kept")


def check_share(value: Any, name: str) -> None:
    """Raise ``ValueError`` naming ``name`` unless ``value`` is a share in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r} must be a number in [0, 1]")
