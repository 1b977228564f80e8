"""What a server holds: requests, KV slots, processes, threads, files, sockets, memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import psutil

from specvlm_sglang.tools import client
from specvlm_sglang.tools.errors import ToolError, told_as_tool_errors

IDLE_SECONDS = 120.0
_GROWTH, _SLACK_BYTES = 0.05, 64 << 20
"""Resident memory is called flat within these."""
_ALLOWED = {"threads": 32, "files": 2, "sockets": 2, "shared_memory": 2}
"""Thread pools fill up for a while, and some things are opened once, late: a leak grows on."""


@dataclass(frozen=True)
class Snapshot:
    """An idle server after a flush.

    Attributes
    ----------
    running, waiting, used_tokens
        Requests, and slots of the target's KV cache, as SGLang counts them.
    draft_slots_in_use, draft_slots_free
        Of the draft's KV cache; None for plain decoding.
    processes, threads, files, sockets, shared_memory
        Of all its processes; the last are mappings of files in ``/dev/shm``.
    resident_bytes
        Of all its processes; pages that they share are counted in each.
    """

    running: int
    waiting: int
    used_tokens: int
    draft_slots_in_use: int | None
    draft_slots_free: int | None
    processes: int
    threads: int
    files: int
    sockets: int
    shared_memory: int
    resident_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return it by name."""
        return asdict(self)


@told_as_tool_errors(httpx.HTTPError)
def when_idle(url: str) -> dict[str, Any]:
    """Wait until no request runs or waits; returns SGLang's load.

    Raises
    ------
    ToolError
        Some still run after `IDLE_SECONDS`, or the server cannot be reached.
    """
    deadline = time.monotonic() + IDLE_SECONDS
    while True:
        load: dict[str, Any] = client.get_json(url, "/v1/loads")["loads"][0]
        left = load["num_running_reqs"] + load["num_waiting_reqs"]
        if not left:
            return load
        if time.monotonic() > deadline:
            raise ToolError(f"{left} requests still run {IDLE_SECONDS:g} s after the last one")
        time.sleep(0.2)


def snapshot(url: str, processes: Sequence[psutil.Process]) -> Snapshot:
    """Wait until the server is idle, flush it and look at it.

    Raises
    ------
    ToolError
        See `when_idle`.
    """
    when_idle(url)
    client.flush_cache(url)
    load, state = when_idle(url), client.specvlm_state(url)
    counts = {"threads": 0, "files": 0, "sockets": 0, "shared_memory": 0, "resident_bytes": 0}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            sockets = len(process.net_connections("all"))
            counts["threads"] += process.num_threads()
            counts["files"] += process.num_fds() - sockets
            counts["sockets"] += sockets
            counts["shared_memory"] += sum(
                one.path.startswith("/dev/shm") for one in process.memory_maps(grouped=False)
            )
            counts["resident_bytes"] += process.memory_info().rss
    return Snapshot(
        running=load["num_running_reqs"],
        waiting=load["num_waiting_reqs"],
        used_tokens=load["num_used_tokens"],
        draft_slots_in_use=state.get("draft_kv_tokens_in_use"),
        draft_slots_free=state.get("draft_kv_tokens_free"),
        processes=len(processes),
        **counts,
    )


def leaks(before: Snapshot, warm: Snapshot, after: Snapshot) -> list[str]:
    """What a server holds that it did not hold before, in words.

    Parameters
    ----------
    before
        Ahead of the load.
    warm
        Within it, when every kind of request has come.
    after
        Behind it.
    """
    found = []
    for name in ("running", "waiting", "used_tokens", "draft_slots_in_use"):
        if getattr(after, name):
            found.append(f"{name}: {getattr(after, name)} on an idle server")
    for name in ("draft_slots_free", "processes"):
        if getattr(after, name) != getattr(before, name):
            found.append(f"{name}: {getattr(before, name)} before, {getattr(after, name)} after")
    for name, more in _ALLOWED.items():
        if getattr(after, name) > getattr(warm, name) + more:
            found.append(f"{name}: {getattr(warm, name)} when warm, {getattr(after, name)} after")
    if after.resident_bytes > warm.resident_bytes * (1 + _GROWTH) + _SLACK_BYTES:
        mib = [one.resident_bytes >> 20 for one in (warm, after)]
        found.append(f"resident memory: {mib[0]} MiB when warm, {mib[1]} MiB after")
    return found
