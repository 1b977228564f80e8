"""SGLang servers that the demo starts, watches and stops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
_STOP_SECONDS = 15.0


class DemoError(RuntimeError):
    """Something that a user can mend; the message is one line."""


def free_port(wanted: int | None = None) -> int:
    """Return a loopback port that nothing listens on.

    Raises
    ------
    DemoError
        ``wanted`` is taken.
    """
    with socket.socket() as probe:
        try:
            probe.bind((HOST, wanted or 0))
        except OSError:
            raise DemoError(f"--port {wanted} is in use on {HOST}: choose another") from None
        return int(probe.getsockname()[1])


def dtype_arguments(dtype: str) -> tuple[str, ...]:
    """Launch arguments of a dtype, for plain decoding too: on a GPU float32 is for Triton alone."""
    if dtype == "float32" and on_gpu():
        backends = ("--attention-backend", "triton", "--mm-attention-backend", "triton_attn")
        return ("--dtype", dtype, *backends)
    return ("--dtype", dtype)


def on_gpu() -> bool:
    """Whether SGLang will serve on CUDA."""
    import torch

    return torch.cuda.is_available()


class DemoServer:
    """One ``sglang.launch_server`` in a process group of its own.

    Parameters
    ----------
    model
        Checkpoint directory or name.
    arguments
        More launch arguments.
    port
        Where it listens.
    log
        File that receives its output.
    """

    def __init__(self, model: str, arguments: Sequence[str], *, port: int, log: Path) -> None:
        self.url = f"http://{HOST}:{port}"
        self.log = log
        self._command = [
            *(sys.executable, "-m", "sglang.launch_server", "--model-path", model),
            *("--host", HOST, "--port", str(port), *arguments),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is None:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, sign)
            except ProcessLookupError:
                break
            deadline = time.monotonic() + _STOP_SECONDS
            while time.monotonic() < deadline and self._group_lives():
                time.sleep(0.1)
        self._process.wait()

    def _group_lives(self) -> bool:
        assert self._process is not None
        self._process.poll()
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def is_ready(self) -> bool:
        """Whether it answers.

        Raises
        ------
        DemoError
            It ended; the message has the end of its log.
        """
        assert self._process is not None
        if self._process.poll() is not None:
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line]
            raise DemoError(f"the server ended: {lines[-1] if lines else ''} (log: {self.log})")
        try:
            with urllib.request.urlopen(f"{self.url}/health_generate", timeout=60) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False


def wait_until_ready(
    servers: Sequence[DemoServer], seconds: float, progress: Callable[[float], None]
) -> None:
    """Wait for all servers, calling ``progress`` with the seconds that have passed.

    Raises
    ------
    DemoError
        One ended, or not all were ready in time.
    """
    started = time.monotonic()
    waiting = list(servers)
    while waiting:
        waiting = [server for server in waiting if not server.is_ready()]
        passed = time.monotonic() - started
        if waiting and passed > seconds:
            raise DemoError(f"not ready after {seconds:.0f} s (log: {waiting[0].log})")
        progress(passed)
        time.sleep(0.5)
