"""Hooks into SGLang's scheduler process, installed with the worker and only there.

What has a room of its own is installed from here; the rest is below.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from specvlm_sglang.host import (
    contract,
    first_token,
    mamba_states,
    min_p,
    penalty_order,
    prefill_only,
    runtime_knobs,
    sessions,
    stops,
    verification,
)
from specvlm_sglang.host.patching import replace_function

_worker: weakref.ref[Any] | None = None


def install(worker: Any) -> None:
    """Every hook of ``worker``'s process; idempotent.

    Prefix matches are capped before the query rows, ``/server_info`` shows ``worker``'s state.
    """
    global _worker
    min_p.install()
    penalty_order.install()
    verification.install()
    mamba_states.install()
    prefill_only.install()
    stops.install()
    sessions.install(worker)
    runtime_knobs.keep_lossless()
    contract.require("worker")
    _worker = weakref.ref(worker)
    first_token.install(_waits_for_vision)
    replace_function(
        "sglang.srt.managers.schedule_batch", "Req._compute_max_prefix_len", _capped_prefix
    )
    replace_function(
        "sglang.srt.managers.scheduler_components.internal_state",
        "SchedulerInternalStateController._add_speculative",
        _with_specvlm_state,
    )


def _waits_for_vision(batch: Any) -> bool:
    worker = _worker() if _worker is not None else None
    return worker is not None and bool(worker.waits_for_vision(batch))


def _capped_prefix(original: Callable[..., int]) -> Callable[..., int]:
    def _compute_max_prefix_len(self: Any, input_len: int) -> int:
        longest = original(self, input_len)
        worker = _worker() if _worker is not None else None
        if worker is None or self.multimodal_inputs is None:
            return longest
        return min(longest, int(worker.longest_prefix(self)))

    return _compute_max_prefix_len


def _with_specvlm_state(original: Callable[..., Any]) -> Callable[..., Any]:
    def _add_speculative(self: Any, state: dict[str, Any]) -> Any:
        result = original(self, state)
        worker = _worker() if _worker is not None else None
        if worker is not None:
            state["specvlm"] = worker.state()
        return result

    return _add_speculative
