"""What is installed in the process of SGLang's scheduler, and in that of its tokenizer manager.

SGLang loads plugins before it knows what a process will be, and imports the scheduler's and the
server's modules later in some of them. All of them are there when a process says its role.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function


def install(installers: Mapping[str, Callable[[], None]]) -> None:
    """Call one of these once this process has its role; idempotent: the first ones stay.

    Parameters
    ----------
    installers
        By SGLang's name of a role, such as ``"scheduler"`` and ``"tokenizer"``.
    """
    contract.require("process roles")
    replace_function(
        "sglang.srt.runtime_context", "publish", functools.partial(_installing, installers)
    )


def _installing(
    installers: Mapping[str, Callable[[], None]], original: Callable[..., Any]
) -> Callable[..., Any]:
    def publish(server_args: Any, *, role: str, **kwargs: Any) -> Any:
        context = original(server_args, role=role, **kwargs)
        if role in installers:
            installers[role]()
        return context

    return publish
