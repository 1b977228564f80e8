"""A server that is ended at any time leaves no process, port or shared memory, and starts again."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from specvlm_sglang.tools.errors import ToolError
from specvlm_sglang.tools.server import HOST, Server, session_processes, wait_until_ready
from tests.serving.specvlm import CHAIN, chat_prompt, launch
from tests.support import checkpoints

pytestmark = [pytest.mark.serving, pytest.mark.slow]

SECONDS = 60.0
SHARED_MEMORY = Path("/dev/shm")
LONG = {"max_new_tokens": 20_000, "temperature": 0, "ignore_eos": True}


def shared_memory_of(pids: set[int]) -> set[str]:
    """Files in /dev/shm that processes have mapped or open."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
            found |= {line.split()[-1] for line in lines if str(SHARED_MEMORY) in line}
    # SGLang's loads of a server's schedulers, a small file, stay behind without a plugin too.
    return {
        name
        for name in found
        if name.startswith(str(SHARED_MEMORY)) and not Path(name).name.startswith("sglang_loads_")
    }


def assert_gone(session: int, port: int, shared: set[str]) -> None:
    deadline = time.monotonic() + SECONDS
    while (left := session_processes(session)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, [process.cmdline()[:4] for process in left]
    with socket.socket() as probe:
        # Connections of the ended one may still be closing; who listens is what matters.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
    assert not {name for name in shared if Path(name).exists()}


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_ended_while_it_starts_and_while_it_answers_nothing_is_left_and_it_starts_again(
    sign: signal.Signals, vl_target: Path, vl_draft: Path, clip_paths: list[Path], tmp_path: Path
) -> None:
    server = Server(vl_target, launch(vl_draft, *CHAIN), log=tmp_path / "server.log")
    for seconds in (2.0, 12.0):
        server.start()
        time.sleep(seconds)
        pids = {process.pid for process in server.processes()}
        shared = shared_memory_of(pids)
        os.kill(server.pid, sign)
        assert_gone(server.pid, server.port, shared)
    with server:
        wait_until_ready([server])
        body = {
            "text": chat_prompt("What happens?", video=True),
            "video_data": [str(clip_paths[0])],
            "sampling_params": LONG,
        }

        def ask() -> None:
            with suppress(httpx.HTTPError):
                httpx.post(f"{server.url}/generate", json=body, timeout=SECONDS)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(2)
        shared = shared_memory_of({process.pid for process in server.processes()})
        os.kill(server.pid, sign)
        asking.join(SECONDS)
        assert_gone(server.pid, server.port, shared)
        with pytest.raises(ToolError, match="the server ended"):
            server.raise_if_ended()


def test_a_draft_that_was_cut_ends_the_start_before_anything_is_loaded(
    vl_target: Path, vl_draft: Path, tmp_path: Path
) -> None:
    draft = checkpoints.cut(vl_draft, tmp_path / "cut")
    server = Server(vl_target, launch(draft, *CHAIN), log=tmp_path / "server.log")
    with server, pytest.raises(ToolError, match="the server ended"):
        wait_until_ready([server])
    last = server.log_text().strip().splitlines()[-1]
    assert last.endswith(
        f"the weights of {draft} cannot be read: model.safetensors: it is 100 bytes shorter than "
        "its header says"
    )
    assert "Load weight" not in server.log_text()
