"""Memory is released when nobody is answered, and resumed where it was released."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.io_struct import (
    ReleaseMemoryOccupationReqInput,
    ResumeMemoryOccupationReqInput,
)

from specvlm_sglang.host import memory_release


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for a device that this machine may not have; nothing is released on it."""
    monkeypatch.setattr(memory_release, "get_device", lambda: SimpleNamespace(device="cuda"))


def manager(*released: str, idle: bool = True, paused: bool = False) -> Any:
    def is_fully_idle(ignore_waiting: bool = False) -> bool:
        return idle or (paused and ignore_waiting)

    return SimpleNamespace(
        offload_tags=set(released),
        is_fully_idle=is_fully_idle,
        scheduler=SimpleNamespace(_engine_paused=paused),
    )


def done(self: Any, request: Any) -> str:
    return "done"


release = memory_release._release(done)
resume = memory_release._resume(done)


def test_an_idle_or_paused_server_releases() -> None:
    assert release(manager(), ReleaseMemoryOccupationReqInput()) == "done"
    waiting = manager(idle=False, paused=True)
    assert release(waiting, ReleaseMemoryOccupationReqInput(tags=["kv_cache"])) == "done"


def test_a_busy_server_refuses_to_release() -> None:
    with pytest.raises(ValueError, match="while requests are being answered"):
        release(manager(idle=False), ReleaseMemoryOccupationReqInput())


def test_what_is_released_is_not_released_again() -> None:
    with pytest.raises(ValueError, match="kv_cache: released already"):
        release(manager("kv_cache"), ReleaseMemoryOccupationReqInput())


def test_only_what_was_released_is_resumed() -> None:
    assert resume(manager("weights"), ResumeMemoryOccupationReqInput(tags=["weights"])) == "done"
    for held in (manager(), manager("weights")):
        with pytest.raises(ValueError, match="not released"):
            resume(held, ResumeMemoryOccupationReqInput())


def test_a_cpu_has_nothing_to_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_release, "get_device", lambda: SimpleNamespace(device="cpu"))
    with pytest.raises(ValueError, match="holds no GPU memory"):
        release(manager(), ReleaseMemoryOccupationReqInput())


@pytest.mark.parametrize("ask", [release, resume])
def test_unknown_parts_are_named(ask: Any) -> None:
    with pytest.raises(ValueError, match=r"tags=\['disk'\] must be among kv_cache, weights"):
        ask(manager(), SimpleNamespace(tags=["disk"]))
