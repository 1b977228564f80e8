"""Numbers that a client sets in a running scheduler: ``/slow_down`` and ``/set_internal_state``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

LONGEST_SECONDS = 60.0
_THRESHOLD = "speculative_accept_threshold"
_STATE = "sglang.srt.managers.scheduler_components.internal_state"


def install_in_scheduler() -> None:
    """Check what is asked of this process; idempotent. Needs `refusals`, which answers."""
    contract.require("runtime knobs")
    replace_function("sglang.srt.managers.scheduler", "Scheduler.slow_down", _within_a_minute)
    replace_function(_STATE, "SchedulerInternalStateController.set_internal_state", _finite)


def keep_lossless() -> None:
    """Refuse thresholds that accept what the target would not say, in this process; idempotent."""
    contract.require("runtime knobs")
    replace_function(_STATE, "SchedulerInternalStateController.set_internal_state", _lossless)


def _within_a_minute(original: Callable[..., Any]) -> Callable[..., Any]:
    def slow_down(self: Any, recv_req: Any) -> Any:
        seconds = recv_req.forward_sleep_time
        # What is not a number is not above it either; time.sleep would raise in a forward pass.
        if seconds is not None and not seconds <= LONGEST_SECONDS:
            raise ValueError(
                f"forward_sleep_time={seconds} must be at most {LONGEST_SECONDS:g} seconds"
            )
        return original(self, recv_req)

    return slow_down


def _finite(original: Callable[..., Any]) -> Callable[..., Any]:
    def set_internal_state(self: Any, recv_req: Any) -> Any:
        for name, value in recv_req.server_args.items():
            if not math.isfinite(value):
                raise ValueError(f"{name}={value} must be a finite number")
        return original(self, recv_req)

    return set_internal_state


def _lossless(original: Callable[..., Any]) -> Callable[..., Any]:
    def set_internal_state(self: Any, recv_req: Any) -> Any:
        for name, value in recv_req.server_args.items():
            if name.startswith(_THRESHOLD) and value != 1:
                raise ValueError(
                    f"{name}={value} does not work with SPECVLM: answers would not be the target's"
                )
        return original(self, recv_req)

    return set_internal_state
