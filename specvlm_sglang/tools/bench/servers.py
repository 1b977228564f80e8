"""The servers of a benchmark: started together where memory allows, watched, measured, stopped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from specvlm_sglang.tools.bench.configurations import CHAIN, PLAIN, TREE
from specvlm_sglang.tools.server import DemoServer, dtype_arguments

_OVERHEAD_BYTES = 4 << 30
"""Host memory of a server's processes beyond the weights, generously."""


class BenchServer(DemoServer):
    """A server whose state, memory and caches can be asked for."""

    def state(self) -> dict[str, Any]:
        """SpecVLM's part of ``/server_info``; empty for plain decoding."""
        answer = httpx.get(f"{self.url}/server_info", timeout=600)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()["internal_states"][0].get("specvlm") or {}
        return found

    def flush(self) -> None:
        """Empty the radix cache and what the draft remembers of videos, once the server is idle.

        A step may still be running when its last answer is out; without ``timeout`` the
        server would refuse then.
        """
        answer = httpx.post(f"{self.url}/flush_cache", params={"timeout": 60}, timeout=600)
        answer.raise_for_status()

    def processes(self) -> list[psutil.Process]:
        """The server's processes."""
        assert self._process is not None
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self._process.pid:
                    found.append(process)
            except ProcessLookupError:
                continue
        return found

    def peak_memory_bytes(self) -> int:
        """Largest resident memory of its processes since they started, added up.

        Pages that processes share are counted in each.
        """
        peak = 0
        for process in self.processes():
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                continue
            lines = (line.split() for line in status.splitlines())
            peak += sum(int(line[1]) * 1024 for line in lines if line[:1] == ["VmHWM:"])
        return peak

    def gpu_memory_bytes(self) -> int | None:
        """GPU memory of its processes now, as the driver counts it; None without a driver."""
        if shutil.which("nvidia-smi") is None:
            return None
        query = ("--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
        listed = subprocess.run(
            ["nvidia-smi", *query], capture_output=True, text=True, check=False, timeout=60
        )
        mine = {process.pid for process in self.processes()}
        rows = [line.split(",") for line in listed.stdout.splitlines() if line.count(",") == 1]
        return sum(int(mib) << 20 for pid, mib in rows if int(pid) in mine)


def launch_arguments(
    server: str,
    *,
    draft: str,
    dtype: str,
    steps: int,
    tree: tuple[int, int, int],
    top_p: float,
    mm_config: dict[str, Any],
    exact_vision: bool,
    more: Sequence[str],
) -> list[str]:
    """Arguments of the server ``plain``, ``chain`` or ``tree``.

    Parameters
    ----------
    steps
        Draft tokens of the chain.
    tree
        Depth, branches per node, verified tokens.
    mm_config
        SGLang's ``--mm-process-config``.
    more
        Given to every server.
    """
    arguments = [*dtype_arguments(dtype), "--mm-process-config", json.dumps(mm_config)]
    if exact_vision:
        arguments.append("--specvlm-exact-vision")
    arguments += more
    if server == PLAIN:
        return arguments
    depth, branches, verified = {CHAIN: (steps, 1, steps + 1), TREE: tree}[server]
    return [
        *arguments,
        *("--speculative-algorithm", "SPECVLM", "--speculative-draft-model-path", draft),
        *("--speculative-num-steps", str(depth)),
        *("--speculative-eagle-topk", str(branches)),
        *("--speculative-num-draft-tokens", str(verified)),
        # Requests choose their own retention, up to all: the draft's pool must hold that.
        *("--specvlm-retention", "1.0", "--specvlm-top-p", str(top_p)),
    ]


def batches(servers: Sequence[str], at_once: int) -> list[list[str]]:
    """Which servers live together: plain decoding beside as many others as fit.

    With one at a time, every server is alone.
    """
    if at_once == 1:
        return [[server] for server in servers]
    others = [server for server in servers if server != PLAIN]
    if not others:
        return [[PLAIN]]
    size = at_once - 1
    return [[PLAIN, *others[at : at + size]] for at in range(0, len(others), size)]


def servers_that_fit(target: str) -> int:
    """How many servers of ``target`` this machine can hold; 1 where there is a GPU."""
    if shutil.which("nvidia-smi") is not None:
        return 1
    folder = Path(target)
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    free = int(psutil.virtual_memory().available)
    return max(1, free // (2 * weights + _OVERHEAD_BYTES))
