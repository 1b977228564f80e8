"""The contract with SGLang: every private symbol and parameter that this project relies on.

SGLang's internals carry no promise, so the version is pinned and each *room* of this project
lists what it uses. The version is compared when the plugin loads (it costs nothing); a room's
symbols are compared just before that room installs itself, when SGLang has imported those modules
anyway, so nothing is ever half-installed. `specvlm doctor` and the tests compare all of them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from specvlm_sglang.host.patching import original_of

SGLANG_VERSION = "0.5.23"


class HostMismatchError(RuntimeError):
    """The installed SGLang is not the one this plugin was written for."""


@dataclass(frozen=True)
class Symbol:
    """One SGLang symbol that we call, replace or subclass.

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
            # Dataclass fields without a default live in the annotations only.
            if not hasattr(found, name) and name in getattr(found, "__annotations__", {}):
                return None
            if not hasattr(found, name):
                return f"{self.path}: missing"
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


_CONTRACT: dict[str, tuple[Symbol, ...]] = {}


def declare(room: str, symbols: Iterable[Symbol]) -> None:
    """Set the symbols that ``room`` relies on; a second declaration replaces the first."""
    _CONTRACT[room] = tuple(symbols)


def rooms() -> dict[str, tuple[Symbol, ...]]:
    """Return the whole table, room by room."""
    # Both fill the table; the kernels' part follows from their twins.
    from specvlm_sglang.cpu.kernels import install  # noqa: F401
    from specvlm_sglang.host import symbols  # noqa: F401

    return dict(_CONTRACT)


def installed_version() -> str | None:
    """Return the version of the installed SGLang, or None where there is none."""
    try:
        return importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return None


def mismatches(room: str | None = None) -> list[str]:
    """Compare ``room`` (or every room) with the installed SGLang, importing what it names."""
    table = rooms()
    if room is not None and room not in table:
        raise ValueError(f"room={room!r} is not one of {sorted(table)}")
    checked = table.values() if room is None else (table[room],)
    return [wrong for symbols in checked for symbol in symbols if (wrong := symbol.mismatch())]


def _refusal(found: str | None, wrong: Iterable[str]) -> str:
    lines = [
        f"specvlm-sglang works with SGLang {SGLANG_VERSION}; found {found or 'no SGLang'}, "
        f"{'with other contents' if found == SGLANG_VERSION else 'so nothing was installed'}.",
        *(f"  - {line}" for line in wrong),
        f"Fix: pip install 'sglang=={SGLANG_VERSION}'",
    ]
    return "\n".join(lines)


@cache
def require_version() -> None:
    """Raise `HostMismatchError` unless the pinned SGLang is installed.

    Another version is compared symbol by symbol, so that the message says what moved.
    """
    found = installed_version()
    if found != SGLANG_VERSION:
        raise HostMismatchError(_refusal(found, mismatches() if found else ()))


@cache
def require(room: str) -> None:
    """Raise `HostMismatchError` unless everything that ``room`` relies on is there."""
    require_version()
    wrong = mismatches(room)
    if wrong:
        raise HostMismatchError(_refusal(installed_version(), wrong))
