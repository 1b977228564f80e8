"""Where pruning policies are found: the project's own, those of a user's file, and their parts."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

from specvlm_sglang.policies import Policy, Scorer, Selector
from specvlm_sglang.pruning import scorers, selectors, shipped
from specvlm_sglang.pruning.composition import compose

FILE_FLAG = "--specvlm-policy-file"
FILE_VARIABLE = "SPECVLM_POLICY_FILE"
MERGE = "+merge"
"""At the end of any policy's name: dropped tokens are mixed into the kept ones."""

_Part = TypeVar("_Part", Policy, Scorer, Selector)


@dataclass(frozen=True)
class _Own:
    """What a user's file has, by name."""

    policies: Mapping[str, Policy]
    scorers: Mapping[str, Scorer]
    selectors: Mapping[str, Selector]


_NOTHING = _Own(MappingProxyType({}), MappingProxyType({}), MappingProxyType({}))


@cache
def shipped_policies() -> Mapping[str, Policy]:
    """The project's own policies by name, in the order in which they are shown."""
    found = _marked(shipped, "policy", Policy)
    for name, pair in shipped.PAIRS.items():
        scorer, _, selector = pair.partition("/")
        found[name] = compose(_shipped_scorers()[scorer], _shipped_selectors()[selector], name)
    return MappingProxyType({name: found[name] for name in shipped.ORDER})


@cache
def _shipped_scorers() -> Mapping[str, Scorer]:
    return MappingProxyType(_marked(scorers, "scorer", Scorer))


@cache
def _shipped_selectors() -> Mapping[str, Selector]:
    return MappingProxyType(_marked(selectors, "selector", Selector))


def own_policies(file: str | None = None) -> Mapping[str, Policy]:
    """Policies of a user's file by name; the file runs once in a process.

    Parameters
    ----------
    file
        By default the one that ``SPECVLM_POLICY_FILE`` names; none without it.

    Raises
    ------
    ValueError
        The file is missing, fails, has no policy, scorer or selector, or has one whose name is
        taken.
    """
    return _own(file).policies


def _own(file: str | None = None) -> _Own:
    file = os.environ.get(FILE_VARIABLE, "").strip() if file is None else file
    return _load(str(Path(file).resolve())) if file else _NOTHING


def all_scorers() -> Mapping[str, Scorer]:
    """Every scorer by name, the user's own last."""
    return {**_shipped_scorers(), **_own().scorers}


def all_selectors() -> Mapping[str, Selector]:
    """Every selector by name, the user's own last."""
    return {**_shipped_selectors(), **_own().selectors}


@cache
def _load(file: str) -> _Own:
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
        return _checked(module)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _checked(module: ModuleType) -> _Own:
    found = _Own(
        _own_parts(module, "policy", Policy, shipped_policies()),
        _own_parts(module, "scorer", Scorer, _shipped_scorers()),
        _own_parts(module, "selector", Selector, _shipped_selectors()),
    )
    if not (found.policies or found.scorers or found.selectors):
        raise ValueError(
            "no function in it has the decorator specvlm_sglang.policies.policy, scorer or selector"
        )
    return found


def _own_parts(
    module: ModuleType, kind: str, type_: type[_Part], taken: Mapping[str, _Part]
) -> Mapping[str, _Part]:
    found = _marked(module, kind, type_)
    for name in found:
        if name in taken:
            raise ValueError(f"{kind} name {name!r} is taken: it is one of {', '.join(taken)}")
    return MappingProxyType({name: replace(one, checks=True) for name, one in found.items()})


def _marked(module: ModuleType, kind: str, type_: type[_Part]) -> dict[str, _Part]:
    found: dict[str, _Part] = {}
    for marked in _parts(module, kind, type_):
        if found.setdefault(marked.name, marked) is not marked:
            raise ValueError(
                f"two {kind[:-1] + 'ies' if kind == 'policy' else kind + 's'} "
                f"are named {marked.name!r}"
            )
    return found


def _parts(module: ModuleType, kind: str, type_: type[_Part]) -> Iterator[_Part]:
    for value in vars(module).values():
        marked = getattr(value, f"specvlm_{kind}", None)
        if isinstance(marked, type_):
            yield marked


def policy_names() -> tuple[str, ...]:
    """Every policy with a name of its own that can be chosen now, the user's last."""
    return (*shipped_policies(), *own_policies())


def find_policy(name: str) -> Policy:
    """Return the policy of this name, of the form ``scorer/selector``, or either with `MERGE`.

    Raises
    ------
    ValueError
        There is none.
    """
    check_policy(name, "policy")
    plain = name.removesuffix(MERGE)
    found = shipped_policies().get(plain) or own_policies().get(plain)
    if found is None:
        scorer, _, selector = plain.partition("/")
        found = compose(all_scorers()[scorer], all_selectors()[selector])
    return found if plain == name else replace(found, name=name, merges=True)


def check_policy(value: Any, name: str) -> None:
    """Raise ``ValueError`` naming ``name`` unless ``value`` is a policy."""
    if isinstance(value, str):
        plain = value.removesuffix(MERGE)
        scorer, slash, selector = plain.partition("/")
        if plain in policy_names() or (
            slash and scorer in all_scorers() and selector in all_selectors()
        ):
            return
    raise ValueError(
        f"{name}={value!r} must be one of {', '.join(policy_names())}, or SCORER/SELECTOR of "
        f"{', '.join(all_scorers())} and {', '.join(all_selectors())}; any may end in {MERGE}"
    )
