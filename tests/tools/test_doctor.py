"""`specvlm doctor` on this machine."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from safetensors.torch import load_file

from specvlm_sglang.tools import doctor as doctor_module
from specvlm_sglang.tools.doctor import GIB, Finding, flashinfer_findings, needs_findings
from specvlm_sglang.tools.needs import ModelNeeds, model_needs
from tests.support import checkpoints


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "specvlm_sglang.tools.cli", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )


def test_a_good_pair_would_serve(vl_target: Path, vl_draft: Path) -> None:
    done = doctor("--target", str(vl_target), "--draft", str(vl_draft))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "can draft for" in done.stdout
    assert "GiB free in main memory" in done.stdout
    assert "Would serve." in done.stdout
    assert "--specvlm-exact-vision" in done.stdout
    # Findings alone, without what libraries say while they are imported.
    assert done.stderr == ""
    assert "Warning" not in done.stdout


def test_a_bad_pair_and_a_bad_setting_would_not(vl_target: Path, text_draft: Path) -> None:
    done = doctor("--target", str(vl_target), "--draft", str(text_draft), SPECVLM_RETENTION="2")
    assert done.returncode == 1
    assert "retention=2.0" in done.stdout
    assert "one of the target's" in done.stdout.replace("\n", " ")
    assert "Would not serve." in done.stdout


def test_a_published_target_is_told_its_drafts_and_what_they_cost() -> None:
    findings = list(doctor_module.draft_findings("Qwen/Qwen3-VL-32B-Instruct"))
    assert not any(finding.blocks for finding in findings)
    first = findings[0].found
    assert first.startswith("Qwen/Qwen3-VL-2B-Instruct reads 6% of what the target reads")
    assert "a chain of 3 gains above 1.2 accepted tokens a round (at most 4)" in first
    assert not any("Qwen2.5" in finding.found for finding in findings)


def test_a_draft_that_reads_nearly_as_much_as_its_target_is_not_recommended() -> None:
    (finding,) = doctor_module.draft_findings("zai-org/GLM-4.5V")
    assert "reads 75% of what the target reads" in finding.found
    assert "no gain" in finding.advice


def test_an_unknown_target_is_advised_to_name_a_draft() -> None:
    (finding,) = doctor_module.draft_findings("somebody/some-video-llm")
    assert "--draft" in finding.advice


def test_the_smallest_of_a_family_has_no_draft() -> None:
    (finding,) = doctor_module.draft_findings("Qwen/Qwen3-VL-2B-Thinking")
    assert "nothing published is smaller" in finding.found


def test_a_model_that_is_not_here_is_not_called_a_bad_draft(tmp_path: Path) -> None:
    (finding,) = doctor_module._pair(*2 * [str(tmp_path / "nothing")])
    assert finding.blocks
    assert "\n" not in finding.found
    assert "folder with a checkpoint" in finding.advice


def test_files_that_are_not_what_they_say_would_not_serve(
    vl_target: Path, vl_draft: Path, tmp_path: Path
) -> None:
    assert not any(one.blocks for one in doctor_module._pair(str(vl_target), str(vl_draft)))
    draft = checkpoints.cut(vl_draft, tmp_path / "cut")
    report = found(doctor_module._pair(str(vl_target), str(draft)))
    assert report["files"].blocks
    assert f"the weights of {draft} cannot be read" in report["files"].found


@pytest.mark.parametrize(("free", "advised"), [(19 * GIB, True), (21 * GIB, False)])
def test_a_disk_too_small_for_a_published_pair_is_named(
    free: int, advised: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(
        doctor_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free)
    )
    finding = found(doctor_module._memory())["disk"]
    assert str(tmp_path) in finding.found
    assert ("HF_HOME" in finding.advice) == advised
    assert not finding.blocks


def test_a_terminal_gets_columns_and_a_pipe_whole_lines() -> None:
    finding = Finding("memory", "much " * 30, "take less", blocks=True)
    shown = {}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=60, color_system=None)
        doctor_module.show(console, finding)
        shown[terminal] = console.file.getvalue().splitlines()
    assert shown[False] == ["no  memory             " + "much " * 30, " " * 23 + "take less"]
    assert len(shown[True]) > 3
    assert all(len(line) <= 60 for line in shown[True])
    assert all(line[:19].strip() == "" for line in shown[True][1:])


def found(findings: object) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}  # type: ignore[attr-defined]


def test_needs_are_read_from_the_files(vl_target: Path) -> None:
    needs = model_needs(str(vl_target))
    tensors = [load_file(file) for file in vl_target.glob("*.safetensors")]
    data = sum(t.numel() * t.element_size() for file in tensors for t in file.values())
    assert needs.weight_bytes is not None
    assert data <= needs.weight_bytes <= data + 64 * 1024  # the rest is the header
    assert needs.kv_bytes_per_token > 0
    assert needs.context > 0


def test_weights_that_are_not_here_are_called_unknown() -> None:
    needs = ModelNeeds(None, 1024, 32768)
    report = found(needs_findings(needs, needs, 8 * GIB, "in main memory"))
    assert "not known" in report["weights"].found
    assert not report["weights"].blocks


def test_a_pair_larger_than_memory_would_not_serve() -> None:
    target, draft = ModelNeeds(60 * GIB, 1 << 18, 32768), ModelNeeds(14 * GIB, 1 << 16, 32768)
    report = found(needs_findings(target, draft, 70 * GIB, "on 1 GPU"))
    assert report["weights"].blocks
    assert "--tp-size" in report["weights"].advice
    fits = found(needs_findings(target, draft, 80 * GIB, "on 1 GPU"))
    assert not fits["weights"].blocks
    # 6 GiB at 320 KiB a token.
    assert "19,660 tokens" in fits["KV cache"].found
    assert "--max-total-tokens" in fits["KV cache"].advice


def test_a_draft_that_reads_less_far_is_named() -> None:
    target, draft = ModelNeeds(GIB, 1024, 128_000), ModelNeeds(GIB, 1024, 32_768)
    report = found(needs_findings(target, draft, 64 * GIB, "on 1 GPU"))
    assert "--context-length 32768" in report["context"].advice
    assert not found(needs_findings(draft, target, 64 * GIB, "on 1 GPU"))["context"].advice


@pytest.mark.parametrize(
    ("packages", "nvcc", "what", "advice"),
    [
        ({}, None, "FlashInfer", "pip install flashinfer-python"),
        ({"flashinfer-python": "0.7"}, None, "its kernels", "pip install flashinfer-jit-cache"),
        ({"flashinfer-python": "0.7"}, "/usr/bin/nvcc", "its kernels", ""),
        ({"flashinfer-python": "0.7", "flashinfer-cubin": "0.7"}, None, "its kernels", ""),
    ],
)
def test_flashinfer_is_advised_about(
    packages: dict[str, str],
    nvcc: str | None,
    what: str,
    advice: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor_module, "_version", packages.get)
    finding = found(flashinfer_findings(nvcc))[what]
    assert finding.advice.startswith(advice) if advice else not finding.advice
