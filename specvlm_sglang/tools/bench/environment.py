"""What a reader needs to judge the numbers: versions, hardware, commit, command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = ("specvlm-sglang", "sglang", "torch", "transformers", "triton")
_GPUS = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


def environment() -> dict[str, Any]:
    """Versions, hardware, commit and command of this run, JSON-ready."""
    return {
        "command": command(),
        "commit": commit(Path(__file__).parent),
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": psutil.virtual_memory().total,
            "gpus": nvidia_smi(*_GPUS) or [],
        },
    }


def command() -> str:
    """The command as a user types it."""
    return shlex.join(["specvlm", "bench", *_after("bench", sys.argv)])


def _after(word: str, arguments: list[str]) -> list[str]:
    return arguments[arguments.index(word) + 1 :] if word in arguments else arguments[1:]


def commit(folder: Path) -> str | None:
    """Commit of the checkout around ``folder``, with "+dirty" where files differ from it."""
    if shutil.which("git") is None:
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "--short=12", "HEAD")
    if not head:
        return None
    return head + ("+dirty" if git("status", "--porcelain") else "")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def nvidia_smi(*query: str) -> list[str] | None:
    """Lines that NVIDIA's driver answers; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    listed = subprocess.run(
        ["nvidia-smi", *query], capture_output=True, text=True, check=False, timeout=60
    )
    return listed.stdout.splitlines() if listed.returncode == 0 else []
