"""What the process frees it keeps, unless the user says otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from specvlm_sglang.cpu import memory
installed = memory.install()
def step():
    return torch.full((2**24,), 1.0).sum()  # 64 MiB
for _ in range(16):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    step()
print(installed, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 8 * 2**26 // 4096

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the C library is not glibc: nothing is installed"
)


def faults(**environment: str) -> tuple[bool, int]:
    """Whether it was installed, and the pages that eight blocks of 64 MiB then cost."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    installed, count = done.stdout.split()
    return installed == "True", int(count)


def test_large_blocks_are_used_again_without_a_page_fault() -> None:
    installed, count = faults()
    assert installed
    assert count < PAGES / 100


@pytest.mark.parametrize(
    "environment",
    [{"SPECVLM_CPU_KEEP_MEMORY": "0"}, {"MALLOC_TRIM_THRESHOLD_": "131072"}],
)
def test_the_user_decides(environment: dict[str, str]) -> None:
    installed, count = faults(**environment)
    assert not installed
    # Huge pages, where the system gives them unasked, hold 512 of these.
    assert count > PAGES / 1024
