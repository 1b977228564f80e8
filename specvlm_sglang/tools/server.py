"""One real SGLang server that a tool starts, watches and stops."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil
from rich.console import Console

from specvlm_sglang.tools.errors import ToolError

HOST = "127.0.0.1"
START_SECONDS = 900.0
"""Until a server answers: the first start on a GPU compiles kernels."""
_STOP_SECONDS = 20.0
_KILL_SECONDS = 10.0
_POLL_SECONDS = 0.5
# Below those that the kernel gives to outgoing connections: none takes it while a server starts.
_PORTS = range(20_000, 32_000)


def free_port(wanted: int | None = None) -> int:
    """Return a loopback port that nothing listens on now.

    Raises
    ------
    ToolError
        ``wanted`` is taken.
    """
    while True:
        # Not `random`: a program that seeds it would choose the same port as its sibling.
        port = wanted or secrets.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                if wanted:
                    raise ToolError(
                        f"--port {wanted} is in use on {HOST}: choose another"
                    ) from None
                continue
        return port


def session_processes(session: int) -> list[psutil.Process]:
    """Live processes of the session that the process with this id leads or led."""
    found = []
    for process in psutil.process_iter():
        try:
            in_session = os.getsid(process.pid) == session
            if in_session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            continue
    return found


class Server:
    """Context manager around one ``python -m sglang.launch_server`` in a session of its own.

    Entered, it is starting; `wait_until_ready` says when it answers. Left, none of its processes
    lives on.

    Parameters
    ----------
    model
        Checkpoint directory or name.
    arguments
        More launch arguments.
    log
        File that receives its output.
    port
        Where it listens; None: any free port.
    environment
        Variables on top of this process's own; None unsets one.
    python
        Interpreter that runs it; None: this one.
    folder
        Working directory, from which Python imports too; None: this one.
    """

    def __init__(
        self,
        model: str | Path,
        arguments: Sequence[str] = (),
        *,
        log: Path,
        port: int | None = None,
        environment: Mapping[str, str | None] | None = None,
        python: Path | None = None,
        folder: Path | None = None,
    ) -> None:
        self.model = model
        self.arguments = tuple(arguments)
        self.log = log
        self.port = free_port() if port is None else port
        self.url = f"http://{HOST}:{self.port}"
        given = {**os.environ, **(environment or {})}
        self._environment = {name: value for name, value in given.items() if value is not None}
        self._python = str(python or sys.executable)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def command(self) -> list[str]:
        """The launch command."""
        fixed = ("--model-path", str(self.model), "--host", HOST, "--port", str(self.port))
        return [self._python, "-m", "sglang.launch_server", *fixed, *self.arguments]

    @property
    def pid(self) -> int:
        """Process id of the launcher, which leads the session."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    def start(self) -> None:
        """Launch, without waiting."""
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                self.command,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        """Terminate all its processes, wait, kill what is left; idempotent.

        Raises
        ------
        ToolError
            A process survives even that.
        """
        if self._process is None:
            return
        for sign, seconds in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
            for process in self.processes():
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(sign)
            self._wait_until_gone(seconds)
        survivors = self.processes()
        if survivors:
            names = ", ".join(f"{process.pid} {process.name()}" for process in survivors)
            raise ToolError(f"processes of the server survived SIGKILL: {names}")
        self._process = None

    def _wait_until_gone(self, seconds: float) -> None:
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended = self._process.poll() is not None
            if ended and not self.processes():
                return
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """Its live processes: all of its session, whoever their parent is now."""
        return session_processes(self.pid)

    def is_healthy(self) -> bool:
        """Whether it generates a token now."""
        try:
            return httpx.get(f"{self.url}/health_generate", timeout=60).status_code == 200
        except httpx.HTTPError:
            return False

    def raise_if_ended(self) -> None:
        """Raise `ToolError` with the last line of its log if its launcher has ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            lines = [line for line in self.log_text().splitlines() if line]
            raise ToolError(f"the server ended: {lines[-1] if lines else ''} (log: {self.log})")

    def log_text(self) -> str:
        """Everything it printed so far."""
        return self.log.read_text(errors="replace")


def start_showing(server: Server, stack: ExitStack, console: Console) -> str:
    """Start ``server``, wait until it answers, and say so; returns its URL.

    Parameters
    ----------
    server
        Not entered yet; left with ``stack``.
    console
        Shows how long it takes, or a line where it is no terminal.

    Raises
    ------
    ToolError
        See `wait_until_ready`.
    """
    stack.enter_context(server)
    title = "starting an SGLang server"
    if not console.is_terminal:
        console.print(title)
    with console.status("") as status:
        wait_until_ready(
            (server,), progress=lambda seconds: status.update(f"{title}: {seconds:.0f} s")
        )
    return server.url


def wait_until_ready(
    servers: Sequence[Server],
    seconds: float = START_SECONDS,
    progress: Callable[[float], None] = lambda seconds: None,
) -> None:
    """Wait for all servers, calling ``progress`` with the seconds that have passed.

    Raises
    ------
    ToolError
        One ended, or not all were ready in time.
    """
    started = time.monotonic()
    waiting = list(servers)
    while waiting:
        for server in waiting:
            server.raise_if_ended()
        waiting = [server for server in waiting if not server.is_healthy()]
        passed = time.monotonic() - started
        if waiting and passed > seconds:
            raise ToolError(f"not ready after {seconds:.0f} s (log: {waiting[0].log})")
        progress(passed)
        time.sleep(_POLL_SECONDS)
