"""Where FlashInfer's kernels would come from, and how its calls are planned."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
from sglang.srt.environ import envs

from specvlm_sglang.host.attention_default import kernels_are_there, plan_on_host


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without packaged kernels and without a compiler."""
    is_file = Path.is_file
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(
        Path, "is_file", lambda path: not str(path).startswith("/usr/local/") and is_file(path)
    )
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)


def test_without_kernels_and_compiler_there_are_none() -> None:
    assert not kernels_are_there()


def test_packaged_kernels_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name == "flashinfer_jit_cache" or None
    )
    assert kernels_are_there()


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_a_compiler_of_the_environment_is_enough(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(tmp_path))
    assert not kernels_are_there()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    assert kernels_are_there()


def test_calls_are_planned_on_the_host_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draft = envs.SGLANG_OPT_FLASHINFER_DRAFT_HOST_INDPTR
    verify = envs.SGLANG_OPT_FLASHINFER_VERIFY_HOST_PLAN
    monkeypatch.setattr(os, "environ", {**os.environ, draft.name: "0"})
    plan_on_host()
    assert not draft.get()
    assert verify.get()
