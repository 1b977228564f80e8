"""What ``specvlm demo`` says when it cannot run, and that nothing it started survives it."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from specvlm_sglang.tools import server as servers
from specvlm_sglang.tools.cli import main
from specvlm_sglang.tools.demo.run import DemoOptions, run, split_own
from specvlm_sglang.tools.server import HOST


def message(options: DemoOptions) -> str:
    """What a demo that fails prints."""
    output = io.StringIO()
    assert run(options, Console(file=output, width=400)) == 1
    return output.getvalue().strip()


def test_a_missing_model_directory_is_one_line(tmp_path: Path) -> None:
    options = DemoOptions(target=str(tmp_path / "none"), draft=str(tmp_path))
    assert message(options) == f"specvlm demo: --target {tmp_path / 'none'}: no such directory"


def test_a_missing_video_is_one_line(tmp_path: Path) -> None:
    options = DemoOptions(video=tmp_path / "none.mp4", target=str(tmp_path), draft=str(tmp_path))
    assert message(options) == f"specvlm demo: --video {tmp_path / 'none.mp4'}: no such file"


def test_a_target_without_a_draft_is_one_line(tmp_path: Path) -> None:
    assert message(DemoOptions(target=str(tmp_path))) == (
        "specvlm demo: --target and --draft go together"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (DemoOptions(retention=0), "--retention 0 must lie in (0, 1]"),
        (DemoOptions(steps=0), "--steps 0 must be at least 1"),
        (DemoOptions(max_tokens=1), "--max-tokens 1 must be at least 2"),
        (DemoOptions(repeats=0), "--repeats 0 must be at least 1"),
        (DemoOptions(parameters=-1), "--parameters -1 must be at least 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_number_out_of_range_is_refused_before_anything_starts(
    options: DemoOptions, said: str
) -> None:
    assert message(options) == f"specvlm demo: {said}"


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        clip = tmp_path / "clip.mp4"
        clip.touch()
        options = DemoOptions(video=clip, target=str(tmp_path), draft=str(tmp_path), port=port)
        assert f"--port {port} is in use" in message(options)


def test_a_pair_that_does_not_serve_ends_with_the_servers_last_line(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.touch()
    said = message(DemoOptions(video=clip, target=str(tmp_path), draft=str(tmp_path)))
    assert said.startswith("specvlm demo: the server ended: ")
    assert len(said.splitlines()) == 1


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


def test_the_flags_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    shown = capsys.readouterr().out
    for flag in ("--video", "--question", "--target", "--draft", "--retention", "--parameters"):
        assert flag in shown


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


@pytest.mark.parametrize(
    ("dtype", "gpu", "triton"),
    [
        ("float32", True, True),
        ("float32", False, False),
        ("bfloat16", True, False),
    ],
)
def test_float32_on_a_gpu_names_backends_that_compute_it(
    dtype: str, gpu: bool, triton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "on_gpu", lambda: gpu)
    arguments = servers.dtype_arguments(dtype)
    assert arguments[:2] == ("--dtype", dtype)
    assert ("triton" in arguments) == ("triton_attn" in arguments) == triton
