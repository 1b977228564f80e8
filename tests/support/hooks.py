"""SGLang's own functions in a test process where hooks of ours may be installed."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from specvlm_sglang.host.patching import original_of


@contextmanager
def unhooked(*targets: tuple[str, str]) -> Iterator[None]:
    """Within, ``(module, attribute)`` are SGLang's own; at the end they are as they were.

    Hooks installed within the context are taken out with it, in every module.

    Parameters
    ----------
    targets : tuple of str
        As `specvlm_sglang.host.patching.replace_function` takes them.
    """
    places = [_place(*target) for target in targets]
    before = [inspect.getattr_static(owner, name) for owner, name in places]
    for (owner, name), held in zip(places, before, strict=True):
        if isinstance(held, staticmethod | classmethod):
            _put(owner, name, type(held)(original_of(held.__func__)))
        elif isinstance(held, property):
            _put(owner, name, property(original_of(held.fget)))
        else:
            _put(owner, name, original_of(held))
    try:
        yield
    finally:
        for (owner, name), held in zip(places, before, strict=True):
            _put(owner, name, held)


def _place(module_name: str, attribute: str) -> tuple[Any, str]:
    owner: Any = importlib.import_module(module_name)
    *path, name = attribute.split(".")
    for part in path:
        owner = getattr(owner, part)
    return owner, name


def _put(owner: Any, name: str, value: Any) -> None:
    held = inspect.getattr_static(owner, name)
    setattr(owner, name, value)
    if held is value or not isinstance(owner, types.ModuleType):
        return
    for module in list(sys.modules.values()):
        if not isinstance(module, types.ModuleType):
            continue
        for held_as, found in list(vars(module).items()):
            if found is held:
                setattr(module, held_as, value)
