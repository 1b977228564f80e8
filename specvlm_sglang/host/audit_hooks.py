"""Where SGLang's scheduler is idle, and where it stops being so: hooks of ``--specvlm-audit``.

Installed with the worker and only if the audit is on. A replay is under way only between two turns
of the scheduler's loop in which nothing else runs or waits, so everything that begins, ends or
changes anything passes one of these places first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from sglang.srt.managers.io_struct import (
    AbortReq,
    BeginWeightUpdateReqInput,
    EndWeightUpdateReqInput,
    GetInternalStateReq,
    ReleaseMemoryOccupationReqInput,
    ResumeMemoryOccupationReqInput,
    UpdateWeightFromDiskReqInput,
    UpdateWeightsFromDistributedReqInput,
    UpdateWeightsFromIPCReqInput,
    UpdateWeightsFromTensorReqInput,
)
from sglang.srt.managers.utils import is_health_check_generate_req

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

_LEAVES_REPLAYS_ALONE = (GetInternalStateReq, AbortReq)
_CHANGES_WEIGHTS = (
    BeginWeightUpdateReqInput,
    EndWeightUpdateReqInput,
    ReleaseMemoryOccupationReqInput,
    ResumeMemoryOccupationReqInput,
    UpdateWeightFromDiskReqInput,
    UpdateWeightsFromDistributedReqInput,
    UpdateWeightsFromIPCReqInput,
    UpdateWeightsFromTensorReqInput,
)
_SCHEDULER = "sglang.srt.managers.scheduler"


class Auditing(Protocol):
    """What the hooks ask of `specvlm_sglang.lossless.audit.auditor.Auditor`."""

    @property
    def is_running(self) -> bool: ...

    @property
    def has_work(self) -> bool: ...

    def note_finished(self, req: Any) -> None: ...

    def step(self, scheduler: Any) -> None: ...

    def give_way(self) -> None: ...

    def note_weights_changed(self, live: Iterable[Any]) -> None: ...


_auditor: Auditing | None = None


def install(auditor: Auditing) -> None:
    """Let ``auditor`` see what finishes, and run while this process's scheduler is idle."""
    global _auditor
    contract.require("audit")
    _auditor = auditor
    replace_function(
        "sglang.srt.managers.schedule_batch", "Req.update_finish_state", _noting_the_finish
    )
    replace_function(_SCHEDULER, "Scheduler.on_idle", _replaying)
    replace_function(_SCHEDULER, "Scheduler.maybe_sleep_on_idle", _sleeping_without_work)
    replace_function(_SCHEDULER, "Scheduler.process_input_requests", _giving_way_to_input)
    replace_function(_SCHEDULER, "Scheduler.flush_cache", _giving_way_to_flush)
    replace_function(_SCHEDULER, "Scheduler.is_fully_idle", _answering_health_checks)


def _installed() -> Auditing:
    assert _auditor is not None
    return _auditor


def _noting_the_finish(original: Callable[..., None]) -> Callable[..., None]:
    def update_finish_state(self: Any, new_accepted_len: int = 1) -> None:
        was_finished = self.finished()
        original(self, new_accepted_len)
        # SGLang releases pixels and slots only after this.
        if self.finished() and not was_finished and not is_health_check_generate_req(self):
            _installed().note_finished(self)

    return update_finish_state


def _replaying(original: Callable[..., None]) -> Callable[..., None]:
    def on_idle(self: Any) -> None:
        auditor = _installed()
        if not auditor.is_running:
            # Its checks count what is allocated, and expect nothing.
            original(self)
        if auditor.has_work and self.is_fully_idle():
            auditor.step(self)
            self.maybe_send_health_check_signal()

    return on_idle


def _sleeping_without_work(original: Callable[..., None]) -> Callable[..., None]:
    def maybe_sleep_on_idle(self: Any) -> None:
        if not _installed().has_work:
            original(self)

    return maybe_sleep_on_idle


def _giving_way_to_input(original: Callable[..., None]) -> Callable[..., None]:
    def process_input_requests(self: Any, recv_reqs: list[Any]) -> None:
        auditor = _installed()
        for recv_req in recv_reqs:
            if isinstance(recv_req, _CHANGES_WEIGHTS):
                auditor.note_weights_changed(_begun(self))
            elif not (
                isinstance(recv_req, _LEAVES_REPLAYS_ALONE)
                # Answered by the replay's next pass.
                or is_health_check_generate_req(recv_req)
            ):
                auditor.give_way()
        original(self, recv_reqs)

    return process_input_requests


def _begun(scheduler: Any) -> list[Any]:
    """Requests that are being answered; those that wait count if they were retracted."""
    begun = {*scheduler.collect_inflight_reqs()}
    begun |= {req for req in scheduler.waiting_queue if req.retracted_stain}
    return [*begun, *([] if scheduler.chunked_req is None else [scheduler.chunked_req])]


def _giving_way_to_flush(original: Callable[..., bool]) -> Callable[..., bool]:
    def flush_cache(self: Any, empty_cache: bool = True) -> bool:
        # A flush may also come out of SGLang's own queue of them.
        _installed().give_way()
        return original(self, empty_cache)

    return flush_cache


def _answering_health_checks(original: Callable[..., bool]) -> Callable[..., bool]:
    def is_fully_idle(
        self: Any, for_health_check: bool = False, ignore_waiting: bool = False
    ) -> bool:
        if for_health_check and _installed().is_running:
            # As with any running request: the end of its pass shows that the scheduler is well.
            return False
        return original(self, for_health_check, ignore_waiting)

    return is_fully_idle
