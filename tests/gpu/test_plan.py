"""What `make test-gpu` says before it imports anything heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.plan import SERVERS, SGLANG, Devices, announcement, missing, remarks, versions

ROOT = Path(__file__).parents[2]
H100 = Devices(1, (9, 0), ("NVIDIA H100, 80 GB",))
A100S = Devices(2, (8, 0), ("NVIDIA A100, 80 GB",) * 2)


def test_a_machine_that_has_everything_is_told_what_runs_and_what_is_left_out() -> None:
    troubles = missing(versions(), H100, ROOT)
    assert not troubles
    text = "\n".join(announcement(versions(), H100, troubles, bench=True))
    assert "GPU: NVIDIA H100, 80 GB, compute capability 9.0" in text
    assert "6 SPECVLM servers" in text
    assert "fa3" in text
    assert "left out: two ranks (needs 2 GPUs, found 1)" in text
    assert "a short benchmark" in text


def test_an_older_card_leaves_out_what_it_cannot_do() -> None:
    said = "\n".join(remarks(A100S))
    assert "left out: fa3 (needs capability 9.0, found 8.0)" in said
    assert "two ranks" not in said


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"sglang": None}, f"SGLang is not installed: {sys.executable} -m pip install sglang=="),
        ({"sglang": "0.5.22"}, f"SGLang 0.5.22: the plugin relies on {SGLANG}"),
        (
            {"pytest": None, "hypothesis": None},
            f"not installed: {sys.executable} -m pip install pytest hypothesis",
        ),
    ],
)
def test_what_is_missing_comes_with_the_command_that_mends_it(
    changed: dict[str, str | None], says: str
) -> None:
    (trouble,) = missing(versions() | changed, H100, ROOT)
    assert says in trouble


def test_without_a_device_nothing_runs_and_it_says_so_at_once(tmp_path: Path) -> None:
    """As a user starts it; nothing of SGLang is imported by then."""
    program = (
        "import sys; from tests.gpu import __main__ as main; sys.argv = ['gpu']; "
        "status = main.main(); "
        "assert not [name for name in sys.modules if name.startswith('sglang')]; "
        "sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "no CUDA device that PyTorch can use" in done.stdout


def test_every_server_of_the_plan_is_a_test() -> None:
    from tests.gpu.test_serving import SERVERS as PARAMETERS

    names = [str(parameter.id) for parameter in PARAMETERS]
    assert names == ["CPU", *(case.name for case in SERVERS)]
