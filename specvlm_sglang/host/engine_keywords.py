"""Our settings as keyword arguments of `sglang.Engine`, beside SGLang's own.

An engine loads plugins when its construction has already begun, so its `__init__` cannot be
replaced in time. The class that it makes its record with is asked for after that.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

PREFIX = "specvlm_"
_ENGINE = "sglang.srt.entrypoints.engine"


def install(export: Callable[[Mapping[str, Any]], None]) -> None:
    """Take keywords that begin with `PREFIX` from engines of this process; idempotent.

    Parameters
    ----------
    export
        Gets them, none where there are none, before SGLang makes its record of the others. What
        it raises reaches who makes the engine.
    """
    if _ENGINE in sys.modules:
        _install_in_engine(export)
        return
    # Only what is about to be an engine needs that module; each calls this function first.
    contract.require("plugin loading")
    replace_function(
        "sglang.srt.plugins", "load_plugins", functools.partial(_installing_later, export)
    )


def _installing_later(
    export: Callable[[Mapping[str, Any]], None], original: Callable[[], None]
) -> Callable[[], None]:
    def load_plugins() -> None:
        original()
        if _ENGINE in sys.modules:
            _install_in_engine(export)

    return load_plugins


def _install_in_engine(export: Callable[[Mapping[str, Any]], None]) -> None:
    contract.require("engine keywords")
    replace_function(_ENGINE, "Engine.server_args_class", functools.partial(_taking, export))


def _taking(
    export: Callable[[Mapping[str, Any]], None], original: Callable[..., Any]
) -> Callable[..., Any]:
    # Held by a class, a function is called as a method: the engine comes first.
    def server_args_class(engine: Any, **keywords: Any) -> Any:
        export({name: value for name, value in keywords.items() if name.startswith(PREFIX)})
        return original(**{k: v for k, v in keywords.items() if not k.startswith(PREFIX)})

    return server_args_class
