"""One order for the penalties of plain decoding without overlap scheduling.

A repetition penalty scales what frequency and presence penalties have added, or is scaled first and
added to: the two differ. With overlap scheduling SGLang 0.5.23 adds first. Without it the order is
that of a Python ``set`` of classes: another one in each process, so that two starts of one server
may answer differently. Here it is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function


def install() -> None:
    """Let penalties add first and scale then in this process; idempotent."""
    contract.require("penalty order")
    replace_function(
        "sglang.srt.sampling.penaltylib.orchestrator",
        "BatchedPenalizerOrchestrator.__init__",
        _adding_first,
    )


def _adding_first(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        in_order = sorted(
            self.penalizers.items(),
            key=lambda entry: (entry[1].is_multiplicative, entry[0].__name__),
        )
        self.penalizers = dict(in_order)

    return __init__
