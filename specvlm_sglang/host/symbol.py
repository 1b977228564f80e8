"""One entry of the contract with SGLang, and how it is compared with what is installed."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from dataclasses import dataclass
from functools import cache

from specvlm_sglang.host.patching import original_of


@dataclass(frozen=True)
class Symbol:
    """One SGLang symbol that we call, read, set, replace or subclass.

    Attributes
    ----------
    path
        ``"package.module:attribute"`` or ``"package.module:Class.attribute"``.
    parameters
        Names that the callable must accept; empty for classes and plain values.
    """

    path: str
    parameters: tuple[str, ...] = ()

    def mismatch(self) -> str | None:
        """Return what is wrong with the symbol in the installed SGLang, or None."""
        module_name, _, attribute = self.path.partition(":")
        try:
            found: object = importlib.import_module(module_name)
        except Exception as error:  # a broken import is a mismatch too
            return f"{module_name}: cannot be imported ({error})"
        for name in attribute.split("."):
            if not hasattr(found, name):
                return None if _is_field(found, name) else f"{self.path}: missing"
            found = getattr(found, name)
        if not self.parameters:
            return None
        found = original_of(found)
        try:
            accepted = inspect.signature(found).parameters  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return f"{self.path}: has no signature any more"
        missing = [name for name in self.parameters if name not in accepted]
        if missing:
            return f"{self.path}: no longer takes {', '.join(missing)}"
        return None


def fields(owner: str, *names: str) -> tuple[Symbol, ...]:
    """Return the symbols of these attributes of ``owner``, ``"package.module:Class"``."""
    return tuple(Symbol(f"{owner}.{name}") for name in names)


def _is_field(owner: object, name: str) -> bool:
    """Whether objects of a class have an attribute that the class itself does not hold."""
    if not inspect.isclass(owner):
        return False
    # Dataclass fields without a default live in the annotations only.
    return any(
        name in vars(base).get("__annotations__", {}) or name in _set_on_self(base)
        for base in owner.__mro__
    )


@cache
def _set_on_self(owner: type) -> frozenset[str]:
    """Attributes that the class's own methods set on the object, read from its source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    except (OSError, TypeError):  # built in, or generated
        return frozenset()
    return frozenset(
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )
