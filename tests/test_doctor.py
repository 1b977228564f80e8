"""`specvlm doctor` on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "specvlm_sglang.cli", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


def test_a_good_pair_would_serve(vl_target: Path, vl_draft: Path) -> None:
    done = doctor("--target", str(vl_target), "--draft", str(vl_draft))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "can draft for" in done.stdout
    assert "Would serve." in done.stdout
    assert "--specvlm-exact-vision" in done.stdout


def test_a_bad_pair_and_a_bad_setting_would_not(vl_target: Path, text_draft: Path) -> None:
    done = doctor("--target", str(vl_target), "--draft", str(text_draft), SPECVLM_RETENTION="2")
    assert done.returncode == 1
    assert "retention=2.0" in done.stdout
    assert "one of the target's" in done.stdout.replace("\n", " ")
    assert "Would not serve." in done.stdout
