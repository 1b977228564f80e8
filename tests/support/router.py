"""SGLang's router in front of servers, where it is installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from specvlm_sglang.tools import server
from specvlm_sglang.tools.errors import ToolError

SECONDS = 120.0


def command() -> str | None:
    """The router's program, of this environment or on the path; None where there is none."""
    beside = Path(sys.executable).parent
    return shutil.which("sglang-router", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")


class Router:
    """Context manager around one router whose policy follows caches.

    Parameters
    ----------
    workers : sequence of str
        URLs of running servers.
    log : Path
        File that receives its output.
    """

    def __init__(self, workers: Sequence[str], *, log: Path) -> None:
        self.url = f"http://{server.HOST}:{(port := server.free_port())}"
        self._log = log
        program = command()
        assert program is not None
        self._command = [
            program,
            "launch",
            *("--host", server.HOST, "--port", str(port)),
            *("--worker-urls", *workers),
            *("--policy", "cache_aware"),
            # A replica that dies is out after two missed checks.
            *("--health-check-interval-secs", "2", "--health-failure-threshold", "2"),
            *("--prometheus-port", str(server.free_port())),
        ]

    def __enter__(self) -> Self:
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _wait(self) -> None:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if requests.get(f"{self.url}/readiness", timeout=5).ok:
                    return
            except requests.ConnectionError:
                pass
            time.sleep(0.5)
        raise ToolError(f"the router did not start:\n{self._log.read_text()[-3000:]}")

    def _stop(self) -> None:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                os.killpg(self._process.pid, sign)
                try:
                    self._process.wait(20)
                except subprocess.TimeoutExpired:
                    continue
