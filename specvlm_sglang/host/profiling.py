"""``/start_profile`` and ``/stop_profile``: what cannot be profiled is refused before it begins.

SGLang's profiler stops by itself in the middle of a forward pass, where an error ends the server:
what would fail there is asked for at the start.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sglang.srt.managers.io_struct import ProfileReqOutput, ProfileReqType

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function
from specvlm_sglang.host.refusals import RefusedError, reason_of

_MODULE = "sglang.srt.managers.scheduler_components.profiler_manager"
_EVERYWHERE = ("CPU", "GPU")
_ON_GPU = (*_EVERYWHERE, "MEM", "CUDA_PROFILER", "RPD", "XPU")


def install_in_scheduler() -> None:
    """Check what is asked of this process's profiler; idempotent."""
    contract.require("profiling")
    replace_function(_MODULE, "SchedulerProfilerManager._profile", _checked)


def install_in_tokenizer() -> None:
    """Answer 400 with the profiler's reason, in this process; idempotent."""
    contract.require("profiling")
    replace_function(
        "sglang.srt.managers.tokenizer_manager", "TokenizerManager._execute_profile", _refused
    )


def why_not(request: Any) -> str | None:
    """Why SGLang's ``ProfileReq`` cannot be followed here; None where it can."""
    known = _ON_GPU if torch.cuda.is_available() else _EVERYWHERE
    unknown = [name for name in request.activities or () if name not in known]
    if unknown:
        return f"activities={unknown}: this machine can profile {', '.join(known)}"
    if request.profile_by_stage and not request.num_steps:
        return "profile_by_stage needs num_steps, the steps of each stage"
    for field in ("num_steps", "start_step"):
        value = getattr(request, field)
        if value is not None and value < 0:
            return f"{field}={value} must not be negative"
    for field in ("profile_prefix", "profile_id"):
        value = getattr(request, field)
        if value and os.sep in value:
            return f"{field} must not contain {os.sep!r}: it becomes part of a file's name"
    folder = request.output_dir or os.getenv("SGLANG_TORCH_PROFILER_DIR", "/tmp")
    try:
        path = Path(folder).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except (OSError, RuntimeError, ValueError) as error:
        return f"output_dir cannot be made ({reason_of(error)})"
    return None if writable else f"output_dir {path} cannot be written"


def _checked(original: Callable[..., Any]) -> Callable[..., Any]:
    def _profile(self: Any, recv_req: Any) -> Any:
        is_start = recv_req.req_type == ProfileReqType.START_PROFILE
        # SGLang's second profiler has another manager, which checks this itself.
        running = getattr(self, "profile_in_progress", False)
        reason = why_not(recv_req) if is_start else None
        if is_start and running:
            reason = "profiling is in progress: call /stop_profile first"
        if reason is not None:
            return ProfileReqOutput(success=False, message=reason)
        try:
            return original(self, recv_req)
        except Exception:
            # Or each later start would find a profiler that is running, and each stop one that
            # is not.
            self.torch_profiler = None
            self.profile_in_progress = False
            raise

    return _profile


def _refused(original: Callable[..., Any]) -> Callable[..., Any]:
    async def _execute_profile(self: Any, req: Any) -> Any:
        try:
            return await original(self, req)
        except RuntimeError as error:
            raise RefusedError(reason_of(error)) from error

    return _execute_profile
