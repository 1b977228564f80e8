"""The process group of a server, with a stand-in for SGLang where starting that would take long."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import pytest

from specvlm_sglang.tools import server
from specvlm_sglang.tools.errors import ToolError
from specvlm_sglang.tools.server import HOST, Server, free_port, session_processes, wait_until_ready

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child])
print("ready", flush=True)
time.sleep(600)
"""


class StandIn(Server):
    """Runs a Python program instead of SGLang."""

    def __init__(self, program: str, log: Path) -> None:
        super().__init__("model", log=log)
        self.program = program

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-c", self.program]


def test_a_free_port_is_none_that_outgoing_connections_take() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 10
    assert max(ports) < lowest


def test_a_wanted_port_that_is_taken_is_refused_by_its_flag() -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        port = taken.getsockname()[1]
        with pytest.raises(ToolError, match=f"--port {port} is in use on {HOST}"):
            free_port(port)
    assert free_port(port) == port


def test_processes_that_ignore_their_termination_are_killed_with_their_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_STOP_SECONDS", 0.5)
    with StandIn(STUBBORN, tmp_path / "log") as stubborn:
        deadline = time.monotonic() + 60
        while "ready" not in stubborn.log_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        session = stubborn.pid
        assert len(session_processes(session)) == 2
    assert session_processes(session) == []


def test_a_server_that_ends_is_told_with_the_last_line_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        StandIn("print('first'); print('no such model')", log) as ending,
        pytest.raises(ToolError, match=rf"^the server ended: no such model \(log: {log}\)$"),
    ):
        wait_until_ready([ending])


def test_a_server_that_is_not_ready_in_time_is_told(tmp_path: Path) -> None:
    with (
        StandIn("import time; time.sleep(600)", tmp_path / "log") as slow,
        pytest.raises(ToolError, match=r"^not ready after 0 s \(log: "),
    ):
        wait_until_ready([slow], 0)
