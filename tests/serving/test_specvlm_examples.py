"""The client examples against a real server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serving.specvlm import CHAIN, launch

pytestmark = pytest.mark.serving
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_openai_example_streams_an_answer_and_says_what_the_draft_kept(
    serve: Any, vl_target: Path, vl_draft: Path, clip_paths: list[Path]
) -> None:
    server = serve(vl_target, *launch(vl_draft, *CHAIN))
    out = run("openai_client.py", "--url", server.url, "--video", str(clip_paths[0]))
    assert "'kept_video_tokens': " in out
    assert len(out.splitlines()[0]) > 3


def test_an_sglang_program_with_a_video_is_understood(
    serve: Any, vl_target: Path, vl_draft: Path, clip_paths: list[Path]
) -> None:
    server = serve(vl_target, *launch(vl_draft, *CHAIN))
    before = server.server_info()["internal_states"][0]["specvlm"]
    answers = [
        run("frontend_video.py", "--url", server.url, "--video", str(path), "--frames", "8")
        for path in clip_paths[:2]
    ]
    after = server.server_info()["internal_states"][0]["specvlm"]
    assert after["video_requests"] - before["video_requests"] == 2
    assert after["cold_at_prefill"] == before["cold_at_prefill"]
    assert answers[0] != answers[1]


@pytest.mark.slow
def test_the_engine_example_runs_without_a_server(
    vl_target: Path, vl_draft: Path, clip_paths: list[Path]
) -> None:
    models = ("--target", str(vl_target), "--draft", str(vl_draft), "--dtype", "float32")
    out = run("engine.py", *models, "--video", str(clip_paths[0]), "--retention", "0.5")
    assert "kept 12 of 24 video tokens" in out
