"""Replacing functions of SGLang in one process, everywhere they were already imported to."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any

_MARK = "__specvlm_original__"
_MADE_BY = "__specvlm_made_by__"


def replace_function(
    module_name: str, attribute: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Replace ``module.attribute`` (``attribute`` may be ``Class.method``) by ``make(original)``.

    Of a static or class method, ``make`` gets and returns the plain function; of a property, what
    reads it.

    ``from module import attribute`` copies the reference at import time, so every loaded module
    that holds the original is rebound too. A second call with the same ``make`` is a no-op; another
    ``make`` wraps what the first one made.

    SGLang's own ``HookRegistry`` does the same for plugins, but imports its targets in every
    process at load time and only logs failures; ours is called where the target is in use
    already, and raises.
    """
    owner: Any = importlib.import_module(module_name)
    *path, name = attribute.split(".")
    for part in path:
        owner = getattr(owner, part)
    held = inspect.getattr_static(owner, name) if path else getattr(owner, name)
    original = _function_in(held)
    if original is None:
        # None stands in every module: rebinding it by identity would break them all.
        raise TypeError(f"{module_name}.{attribute} is None here, so it cannot be wrapped")
    maker = _name_of(make)
    below = original
    while hasattr(below, _MARK):
        if getattr(below, _MADE_BY) == maker:
            return
        below = getattr(below, _MARK)
    replacement = make(original)
    setattr(replacement, _MARK, original)
    setattr(replacement, _MADE_BY, maker)
    setattr(owner, name, _bound_as(held, replacement))
    if path:
        return
    for module in list(sys.modules.values()):
        if not isinstance(module, types.ModuleType) or module is owner:
            continue
        for held_as, value in list(vars(module).items()):
            if value is original:
                setattr(module, held_as, replacement)


def is_replaced(function: Any) -> bool:
    """Whether `replace_function` put it where it is."""
    return hasattr(function, _MARK)


def original_of(function: Any) -> Any:
    """Return SGLang's own function under everything that `replace_function` put before it."""
    while hasattr(function, _MARK):
        function = getattr(function, _MARK)
    return function


def _function_in(held: Any) -> Any:
    """The plain function of what a class holds."""
    if isinstance(held, property):
        return held.fget
    return held.__func__ if isinstance(held, staticmethod | classmethod) else held


def _bound_as(held: Any, function: Any) -> Any:
    """``function`` in the place of the one in ``held``."""
    if isinstance(held, property):
        return property(function, held.fset, held.fdel, held.__doc__)
    return type(held)(function) if isinstance(held, staticmethod | classmethod) else function


def _name_of(make: Callable[..., Any]) -> str:
    function = make.func if isinstance(make, functools.partial) else make
    return f"{function.__module__}.{function.__qualname__}"
