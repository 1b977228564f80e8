"""The contract with SGLang: every private symbol and parameter that this project relies on.

SGLang's internals carry no promise, so the version is pinned and each *room* of this project
lists what it uses. The version is compared when the plugin loads (it costs nothing, and imports
nothing of SGLang); `specvlm doctor --sglang` says what another version has moved. A room's
symbols are compared just before that room installs itself, when SGLang has imported those modules
anyway, so nothing is ever half-installed. `specvlm doctor` and the tests compare all of them.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from functools import cache

from specvlm_sglang.host.symbol import Symbol
from specvlm_sglang.host.symbols import SYMBOLS

SGLANG_VERSION = "0.5.23"


class HostMismatchError(RuntimeError):
    """The installed SGLang is not the one this plugin was written for."""


def rooms() -> dict[str, tuple[Symbol, ...]]:
    """Return the whole table, room by room."""
    return dict(SYMBOLS)


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
    """Raise `HostMismatchError` unless the pinned SGLang is installed, by its version alone."""
    found = installed_version()
    if found != SGLANG_VERSION:
        raise HostMismatchError(_refusal(found, ()))


@cache
def require(room: str) -> None:
    """Raise `HostMismatchError` unless everything that ``room`` relies on is there."""
    require_version()
    wrong = mismatches(room)
    if wrong:
        raise HostMismatchError(_refusal(installed_version(), wrong))
