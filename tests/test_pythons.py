"""Other Pythons: found, or missed with a reason; `make test-pythons` fails for one it missed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.support.interpreters import ROOT, find_interpreter, uv_command

NEVER_RELEASED = "3.7.99"


@pytest.fixture(autouse=True)
def _with_uv() -> None:
    try:
        uv_command()
    except LookupError as error:
        pytest.skip(str(error))


def test_the_running_version_is_found_outside_its_virtual_environment() -> None:
    version = platform.python_version()
    found = find_interpreter(version)
    code = "import platform, sys; print(platform.python_version(), sys.prefix == sys.base_prefix)"
    said = subprocess.run([found, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == [version, "True"]


@pytest.mark.parametrize("fetch", [False, True])
def test_a_version_that_cannot_be_had_is_missed_with_a_reason(fetch: bool) -> None:
    with pytest.raises(LookupError, match=rf"Python {NEVER_RELEASED} is not on this machine.*: \w"):
        find_interpreter(NEVER_RELEASED, fetch=fetch)


def test_a_version_that_was_not_tested_is_a_failure() -> None:
    command = [sys.executable, "-m", "tests.pythons", NEVER_RELEASED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"Python {NEVER_RELEASED}: not tested: Python {NEVER_RELEASED} is not" in done.stdout
