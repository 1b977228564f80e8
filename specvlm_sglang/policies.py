"""Names of the pruning policies and what each needs; importable without torch.

A user's own policies come from one Python file, named by ``--specvlm-policy-file`` or
``SPECVLM_POLICY_FILE``, whose functions carry the decorator `policy`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Choose = Callable[[torch.Tensor, int, tuple[int, int, int] | None, float], torch.Tensor]

POLICIES: tuple[str, ...] = (
    "specvlm",
    "specvlm-grid",
    "attention",
    "uniform",
    "uniform-grid",
    "random",
    "window-front",
    "window-middle",
    "window-back",
    "frames",
    "none",
)
"""Every policy of this project; `specvlm_sglang.pruning.selection` says what they do."""

NEED_SCORES = ("specvlm", "specvlm-grid", "attention")
"""Policies of this project that read the target's attention."""

NEED_GRID = ("specvlm-grid", "uniform-grid", "frames")
"""Policies of this project that space tokens over frames and over each frame's area."""

FILE_FLAG = "--specvlm-policy-file"
FILE_VARIABLE = "SPECVLM_POLICY_FILE"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class OwnPolicy:
    """A policy from a user's file.

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
    """

    name: str
    choose: Choose
    needs_scores: bool
    needs_grid: bool


def policy(
    name: str, *, needs_scores: bool = False, needs_grid: bool = False
) -> Callable[[Choose], Choose]:
    """Make a function of a policy file a pruning policy.

    The function is called as ``function(scores, budget, grid, top_p)`` and returns the kept
    tokens: int64 ``[budget]``, distinct indices below N in any order, on the device of ``scores``.

    - ``scores``: float32 ``[N]``, the target's mean attention to each video token in prompt order,
      finite and at least 0; zeros without ``needs_scores`` or where the attention is no use.
    - ``budget``: how many tokens are kept, 1 to N - 1.
    - ``grid``: ``(frames, rows, columns)`` with product N, or None without ``needs_grid``.
    - ``top_p``: the setting of that name.

    To keep a GPU busy it should not read values back to the host (``.item()``, ``.tolist()``,
    boolean indexing).

    Parameters
    ----------
    name
        Lower-case letters, digits and hyphens; none of `POLICIES`.
    needs_scores, needs_grid
        See `OwnPolicy`.

    Raises
    ------
    ValueError
        A name of another form, or one that is taken.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"policy name {name!r} must be lower-case words joined by hyphens")
    if name in POLICIES:
        raise ValueError(f"policy name {name!r} is taken: it is one of {', '.join(POLICIES)}")

    def mark(function: Choose) -> Choose:
        function.specvlm_policy = OwnPolicy(  # type: ignore[attr-defined]
            name, function, needs_scores, needs_grid
        )
        return function

    return mark


def own_policies(file: str | None = None) -> Mapping[str, OwnPolicy]:
    """Policies of a user's file by name; the file runs once in a process.

    Parameters
    ----------
    file
        By default the one that ``SPECVLM_POLICY_FILE`` names; none without it.

    Raises
    ------
    ValueError
        The file is missing, fails, has no policy, or has two of one name.
    """
    file = os.environ.get(FILE_VARIABLE, "").strip() if file is None else file
    return _load(str(Path(file).resolve())) if file else {}


@cache
def _load(file: str) -> Mapping[str, OwnPolicy]:
    where = f"{FILE_FLAG}={file}"
    if not Path(file).is_file():
        raise ValueError(f"{where}: there is no such file")
    spec = importlib.util.spec_from_file_location("specvlm_policy_file", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{where}: must be a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles of the file look their module up.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
    marked = [getattr(value, "specvlm_policy", None) for value in vars(module).values()]
    found: dict[str, OwnPolicy] = {}
    for own in marked:
        if isinstance(own, OwnPolicy) and found.setdefault(own.name, own) is not own:
            raise ValueError(f"{where}: two policies are named {own.name!r}")
    if not found:
        raise ValueError(
            f"{where}: no function in it has the decorator specvlm_sglang.policies.policy"
        )
    return MappingProxyType(found)


def policy_names() -> tuple[str, ...]:
    """Every policy that can be chosen now, the user's own last."""
    return (*POLICIES, *own_policies())


def needs_scores(name: str) -> bool:
    """Whether a policy reads the target's attention."""
    own = own_policies().get(name)
    return name in NEED_SCORES if own is None else own.needs_scores


def needs_grid(name: str) -> bool:
    """Whether a policy needs to know the video's grid."""
    own = own_policies().get(name)
    return name in NEED_GRID if own is None else own.needs_grid


def check_retention(value: Any, name: str) -> None:
    """Raise ``ValueError`` naming ``name`` unless ``value`` is a share in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"{name}={value!r} must be a number in (0, 1], the share that is kept")


def check_share(value: Any, name: str) -> None:
    """Raise ``ValueError`` naming ``name`` unless ``value`` is a share in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r} must be a number in [0, 1]")


def check_policy(value: Any, name: str) -> None:
    """Raise ``ValueError`` naming ``name`` unless ``value`` is a policy."""
    names = policy_names()
    if value not in names:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(names)}")
