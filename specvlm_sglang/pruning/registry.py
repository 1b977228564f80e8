"""Where pruning policies are found: the project's own, and those of a user's file."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from specvlm_sglang.policies import Policy
from specvlm_sglang.pruning import shipped

FILE_FLAG = "--specvlm-policy-file"
FILE_VARIABLE = "SPECVLM_POLICY_FILE"


@cache
def shipped_policies() -> Mapping[str, Policy]:
    """The project's own policies by name, in the order in which they are shown."""
    return MappingProxyType(_marked(shipped))


def own_policies(file: str | None = None) -> Mapping[str, Policy]:
    """Policies of a user's file by name; the file runs once in a process.

    Parameters
    ----------
    file
        By default the one that ``SPECVLM_POLICY_FILE`` names; none without it.

    Raises
    ------
    ValueError
        The file is missing, fails, has no policy, or has one whose name is taken.
    """
    file = os.environ.get(FILE_VARIABLE, "").strip() if file is None else file
    return _load(str(Path(file).resolve())) if file else {}


@cache
def _load(file: str) -> Mapping[str, Policy]:
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
    try:
        found = _marked(module)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not found:
        raise ValueError(
            f"{where}: no function in it has the decorator specvlm_sglang.policies.policy"
        )
    taken = shipped_policies()
    for name in found:
        if name in taken:
            raise ValueError(
                f"{where}: policy name {name!r} is taken: it is one of {', '.join(taken)}"
            )
    return MappingProxyType(found)


def _marked(module: ModuleType) -> dict[str, Policy]:
    found: dict[str, Policy] = {}
    for value in vars(module).values():
        marked = getattr(value, "specvlm_policy", None)
        if isinstance(marked, Policy) and found.setdefault(marked.name, marked) is not marked:
            raise ValueError(f"two policies are named {marked.name!r}")
    return found


def policy_names() -> tuple[str, ...]:
    """Every policy that can be chosen now, the user's own last."""
    return (*shipped_policies(), *own_policies())


def find_policy(name: str) -> Policy:
    """Return the policy of this name.

    Raises
    ------
    ValueError
        There is none.
    """
    check_policy(name, "policy")
    return shipped_policies().get(name) or own_policies()[name]


def check_policy(value: Any, name: str) -> None:
    """Raise ``ValueError`` naming ``name`` unless ``value`` is a policy."""
    names = policy_names()
    if value not in names:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(names)}")
