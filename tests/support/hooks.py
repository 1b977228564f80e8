"""Taking hooks into SGLang back out of the test process."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def restored(*targets: tuple[str, str]) -> Iterator[None]:
    """Put ``(module, attribute)`` back as they are now when the context ends.

    Parameters
    ----------
    targets : tuple of str
        As `specvlm_sglang.host.patching.replace_function` takes them; a function is put back
        in every module that it was replaced in.
    """
    held = []
    for module_name, attribute in targets:
        owner: Any = importlib.import_module(module_name)
        *path, name = attribute.split(".")
        for part in path:
            owner = getattr(owner, part)
        held.append((owner, name, inspect.getattr_static(owner, name)))
    try:
        yield
    finally:
        for owner, name, original in held:
            replacement = inspect.getattr_static(owner, name)
            setattr(owner, name, original)
            if replacement is original or not isinstance(owner, types.ModuleType):
                continue
            for module in list(sys.modules.values()):
                if not isinstance(module, types.ModuleType):
                    continue
                for held_as, value in list(vars(module).items()):
                    if value is replacement:
                        setattr(module, held_as, original)
