"""Python interpreters of a wanted version, through uv."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def uv_command() -> str:
    """The uv that started this process, else the one on the path, else the Makefile's own.

    Raises
    ------
    LookupError
        If there is none.
    """
    own = ROOT / ".tools/bin/uv"
    found = os.environ.get("UV") or shutil.which("uv") or (str(own) if own.exists() else None)
    if found is None:
        raise LookupError("uv is not installed: `make setup` puts it into .tools/")
    return found


def outside_environment() -> dict[str, str]:
    """This process's variables without those that point into its own environment and sources.

    Fresh environments keep their bytecode: SGLang's imports take more than twice as long without.
    """
    ours = {"PYTHONPATH", "PYTHONHOME", "UV_PROJECT_ENVIRONMENT", "UV_PYTHON", "VIRTUAL_ENV"}
    left_out = {*ours, "PYTHONDONTWRITEBYTECODE"}
    return {name: value for name, value in os.environ.items() if name not in left_out}


def find_interpreter(version: str, *, fetch: bool = False) -> Path:
    """An interpreter of a Python version, no virtual environment's.

    Parameters
    ----------
    version : str
        Such as "3.12".
    fetch : bool
        Let uv download one where the machine has none.

    Raises
    ------
    LookupError
        If there is none; the message says why.
    """
    environment = outside_environment()
    # uv sees only what is on the path, and of pyenv only the version that is switched on.
    more = [str(Path(sys.base_prefix) / "bin"), *_pyenv_folders(version)]
    environment["PATH"] = os.pathsep.join([environment["PATH"], *more])
    search = ("find", "--system", "--no-project", "--no-python-downloads", version)
    found = _uv_python(environment, *search)
    if found.returncode and fetch:
        fetched = _uv_python(environment, "install", version)
        if fetched.returncode:
            raise LookupError(
                f"Python {version} is not on this machine and uv could not fetch it: "
                f"{_reason(fetched.stderr)}"
            )
        found = _uv_python(environment, *search)
    if found.returncode:
        raise LookupError(f"Python {version} is not on this machine: {_reason(found.stderr)}")
    return Path(found.stdout.strip())


def _uv_python(environment: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    command = [uv_command(), "python", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _pyenv_folders(version: str) -> list[str]:
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    return [str(folder) for folder in sorted(root.glob(f"versions/{version}.*/bin"))]


def _reason(stderr: str) -> str:
    """What uv's error says first, and the last cause that it names."""
    # Warnings about interpreters that are not wanted come before it.
    error = re.split("^error: ", stderr, flags=re.MULTILINE)[-1]
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    causes = [line.removeprefix("cause: ") for line in lines if line.startswith("cause: ")]
    return ": ".join(lines[:1] + causes[-1:])
