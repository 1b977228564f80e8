"""What ``specvlm demo`` says when it cannot run, and that nothing it started survives it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from specvlm_sglang.tools.cli import main
from specvlm_sglang.tools.demo.run import split_own
from specvlm_sglang.tools.server import HOST

Message = Callable[..., str]


@pytest.fixture
def message(capsys: pytest.CaptureFixture[str]) -> Message:
    """What a demo that fails says after its name."""

    def run(*arguments: str | Path) -> str:
        assert main(["demo", *map(str, arguments)]) == 1
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1
        return said.removeprefix("specvlm demo: ")

    return run


def test_a_missing_model_directory_is_one_line(message: Message, tmp_path: Path) -> None:
    said = message("--target", tmp_path / "none", "--draft", tmp_path)
    assert said == f"--target {tmp_path / 'none'}: no such directory"


def test_a_missing_video_is_one_line(message: Message, tmp_path: Path) -> None:
    pair = ("--target", tmp_path, "--draft", tmp_path)
    said = message("--video", tmp_path / "none.mp4", *pair)
    assert said == f"--video {tmp_path / 'none.mp4'}: no such file"


def test_a_target_without_a_draft_is_one_line(message: Message, tmp_path: Path) -> None:
    assert message("--target", tmp_path) == "--target and --draft go together"


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--retention", "0", "--retention 0.0 must lie in (0, 1]"),
        ("--steps", "0", "--steps 0 must be at least 1"),
        ("--max-tokens", "1", "--max-tokens 1 must be at least 2"),
        ("--repeats", "0", "--repeats 0 must be at least 1"),
        ("--parameters", "-1", "--parameters -1 must be at least 0"),
    ],
)
def test_a_number_out_of_range_is_refused_before_anything_starts(
    message: Message, flag: str, value: str, said: str
) -> None:
    assert message(flag, value) == said


def test_a_size_below_the_shipped_targets_is_one_line(message: Message) -> None:
    assert "--parameters 1000000: parameters must be at least" in message("--parameters", "1000000")


def test_a_port_in_use_is_one_line(message: Message, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        clip = tmp_path / "clip.mp4"
        clip.touch()
        pair = ("--target", tmp_path, "--draft", tmp_path)
        assert f"--port {port} is in use" in message("--video", clip, *pair, "--port", port)


@pytest.mark.slow
def test_a_pair_that_does_not_serve_ends_with_the_servers_last_line(
    message: Message, tmp_path: Path
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.touch()
    said = message("--video", clip, "--target", tmp_path, "--draft", tmp_path)
    assert said.startswith("the server ended: ")


@pytest.mark.parametrize(
    ("tokens", "piece", "drafted", "own"),
    [
        ([" red", " disc", " moves"], " red disc moves", " red disc", " moves"),
        (["At"], "At", "", "At"),
        ([" disc", ".", "<|im_end|>"], " disc.", " disc.", ""),
        ([" caf", "\ufffd", "\ufffd"], " caf\u00e9", "", " caf\u00e9"),
        ([], " disc", "", " disc"),
    ],
)
def test_the_last_token_of_a_round_is_the_targets(
    tokens: list[str], piece: str, drafted: str, own: str
) -> None:
    assert split_own(piece, tokens) == (drafted, own)


def demo_process(*arguments: str, folder: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "specvlm_sglang.tools.cli", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


@pytest.mark.serving
@pytest.mark.parametrize(
    "sign",
    [
        pytest.param(signal.SIGINT, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, id="terminated", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, id="terminal closed", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_demo_leaves_no_process_behind(
    vl_target: Path, vl_draft: Path, clip_paths: list[Path], sign: signal.Signals
) -> None:
    pair = ("--target", str(vl_target), "--draft", str(vl_draft))
    demo = demo_process(*pair, "--video", str(clip_paths[0]))
    parent = psutil.Process(demo.pid)
    servers: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while len(servers) < 2 and time.monotonic() < deadline:
        servers = parent.children(recursive=True)
        time.sleep(0.2)
    demo.send_signal(sign)
    try:
        out, _ = demo.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        parent.kill()
        out = "it did not stop within a minute"
    survivors = [server for server in servers if server.is_running()]
    for server in survivors:
        server.kill()
    assert len(servers) >= 2
    assert demo.returncode == 130, out
    assert not survivors


@pytest.mark.slow
@pytest.mark.serving
def test_the_demo_answers_alike_with_and_without_specvlm(tmp_path: Path) -> None:
    demo = demo_process(
        "--parameters", "0", "--dtype", "float32", "--repeats", "1", folder=tmp_path
    )
    out, _ = demo.communicate(timeout=900)
    assert demo.returncode == 0, out
    assert "Both servers gave the same answer." in out
    assert "tokens per target pass" in out
    assert "accepted from the draft" in (tmp_path / "demo/index.html").read_text()
