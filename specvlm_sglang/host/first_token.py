"""The first token is not kept waiting by what only a draft needs.

Under overlap scheduling SGLang launches a round before it looks at the results of the pass before
it. A round that begins with an encoder, which makes the host wait for the device, would hold the
first token up until the encoder is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specvlm_sglang.host.patching import replace_function


def install(waits: Callable[[Any], bool]) -> None:
    """Send a prefill's results before such a round; idempotent.

    Parameters
    ----------
    waits
        Whether the round of a ``ScheduleBatch`` makes the host wait at its head.
    """

    def results_first(original: Callable[..., bool]) -> Callable[..., bool]:
        def is_disable_overlap_for_batch(self: Any, batch: Any, last_batch: Any) -> bool:
            if original(self, batch, last_batch):
                return True
            is_round = batch is not None and batch.forward_mode.is_decode()
            return is_round and len(self.result_queue) > 0 and waits(batch)

        return is_disable_overlap_for_batch

    replace_function(
        "sglang.srt.managers.scheduler", "Scheduler.is_disable_overlap_for_batch", results_first
    )
