"""``/release_memory_occupation`` and ``/resume_memory_occupation``: refused where SGLang asserts.

SGLang ends the scheduler where requests are being answered, where memory is resumed that was not
released, and for parts that it does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.constants import GPU_MEMORY_ALL_TYPES
from sglang.srt.runtime_context import get_device

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

_MODULE = "sglang.srt.managers.scheduler_components.weight_updater"


def install_in_scheduler() -> None:
    """Check what is asked of this process; idempotent. Needs `refusals`, which answers."""
    contract.require("memory release")
    replace_function(_MODULE, "SchedulerWeightUpdaterManager.release_memory_occupation", _release)
    replace_function(_MODULE, "SchedulerWeightUpdaterManager.resume_memory_occupation", _resume)


def _wanted(request: Any) -> list[str]:
    tags = list(request.tags or GPU_MEMORY_ALL_TYPES)
    unknown = [tag for tag in tags if tag not in GPU_MEMORY_ALL_TYPES]
    if unknown:
        raise ValueError(f"tags={unknown} must be among {', '.join(GPU_MEMORY_ALL_TYPES)}")
    return tags


def _release(original: Callable[..., Any]) -> Callable[..., Any]:
    def release_memory_occupation(self: Any, recv_req: Any) -> Any:
        already = [tag for tag in _wanted(recv_req) if tag in self.offload_tags]
        if get_device().device == "cpu":
            raise ValueError("this server runs on a CPU: it holds no GPU memory to release")
        if already:
            raise ValueError(f"{', '.join(already)}: released already")
        is_paused = self.scheduler is not None and self.scheduler._engine_paused
        if not self.is_fully_idle(ignore_waiting=is_paused):
            raise ValueError(
                "memory cannot be released while requests are being answered: wait for them, "
                "abort them, or call /pause_generation first"
            )
        return original(self, recv_req)

    return release_memory_occupation


def _resume(original: Callable[..., Any]) -> Callable[..., Any]:
    def resume_memory_occupation(self: Any, recv_req: Any) -> Any:
        held = [tag for tag in _wanted(recv_req) if tag not in self.offload_tags]
        if held:
            raise ValueError(
                f"{', '.join(held)}: not released, so there is nothing to resume; name what "
                "/release_memory_occupation released in tags"
            )
        return original(self, recv_req)

    return resume_memory_occupation
