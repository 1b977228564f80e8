"""What is published: the wheel, the sdist, and the wheel installed beside SGLang and serving."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import messages
from tests.support.interpreters import (
    ROOT,
    find_interpreter,
    outside_environment,
    uv_command,
)
from tests.support.server import Server

pytestmark = pytest.mark.slow

PACKAGE = "specvlm_sglang"
PYTHONS = ("3.11", "3.12", "3.13")
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"

MAKE_CLIP = """
import json, sys
from pathlib import Path
from specvlm_sglang.tools import demo
scene = demo.make_clip(Path(sys.argv[1]), 3_000_000_007)
found = {"target": demo.target_path(), "draft": demo.draft_path()}
print(json.dumps({"question": demo.description(scene)[0], **{k: str(v) for k, v in found.items()}}))
"""
IMPORT_ALL = """
import importlib, pkgutil, specvlm_sglang
def stop(name): raise
names = [m.name for m in pkgutil.walk_packages(specvlm_sglang.__path__, "specvlm_sglang.", stop)]
for name in names: importlib.import_module(name)
print(*names)
"""
READ_ENTRY_POINTS = """
from importlib.metadata import entry_points
for group in ("sglang.srt.platforms", "sglang.srt.plugins"):
    for point in entry_points(group=group):
        if point.dist.name == "specvlm-sglang":
            print(point.name, point.load().__module__)
"""


@dataclass(frozen=True)
class Built:
    """Files that were built.

    Attributes
    ----------
    wheel, sdist
        From the source tree.
    rebuilt
        The wheel that the sdist gives.
    """

    wheel: Path
    sdist: Path
    rebuilt: Path


@dataclass(frozen=True)
class Installed:
    """An environment that holds the wheel, SGLang and what they need; outside the source tree.

    Attributes
    ----------
    python
        Its interpreter.
    folder
        An empty working directory.
    variables
        Of a user who switched the environment on.
    """

    python: Path
    folder: Path
    variables: dict[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one of its commands; its status must be 0."""
        done = subprocess.run(
            [str(self.python.parent / command[0]), *command[1:]],
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done


def uv(*command: str, **variables: str) -> None:
    """Run uv in the source tree; its status must be 0."""
    done = subprocess.run(
        [uv_command(), *command],
        cwd=ROOT,
        env={**outside_environment(), "UV_HTTP_TIMEOUT": "300", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"uv {' '.join(command)}:\n{done.stderr}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    first, second = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("again")
    uv("build", "--sdist", "--wheel", "--out-dir", str(first))
    (wheel,), (sdist,) = first.glob("*.whl"), first.glob("*.tar.gz")
    uv("build", "--wheel", "--out-dir", str(second), str(sdist))
    return Built(wheel, sdist, next(second.glob("*.whl")))


@pytest.fixture(scope="module", params=PYTHONS)
def installed(
    request: pytest.FixtureRequest, built: Built, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installed]:
    version: str = request.param
    try:
        interpreter = find_interpreter(version)
    except LookupError as error:
        if version == RUNNING:
            raise
        pytest.skip(str(error))
    place = tmp_path_factory.mktemp(f"python-{version}-")
    try:
        yield install(built.wheel, interpreter, place)
    finally:
        # pytest keeps the folders of three runs; an environment takes gigabytes.
        shutil.rmtree(place)


def install(wheel: Path, interpreter: Path, place: Path) -> Installed:
    """Install the wheel beside the locked packages, without the developers' ones."""
    environment, folder = place / "environment", place / "elsewhere"
    folder.mkdir()
    variables = {"UV_PROJECT_ENVIRONMENT": str(environment), "UV_PYTHON": str(interpreter)}
    uv("sync", "--frozen", "--no-dev", "--no-install-project", **variables)
    overrides = place / "overrides.txt"
    overrides.write_text("\n".join(lock_overrides()))
    # Offline: fails if the wheel wants anything that the lock does not have.
    python = environment / "bin/python"
    target = ("--python", str(python), "--overrides", str(overrides))
    uv("pip", "install", "--offline", *target, str(wheel))
    path = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    return Installed(python, folder, {**outside_environment(), "PATH": path})


def lock_overrides() -> Sequence[str]:
    """Requirements of others that the lock replaces."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: list[str] = project["tool"]["uv"]["override-dependencies"]
    return found


def contents(wheel: Path) -> dict[str, int]:
    """Names of a wheel's files, each with its checksum."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist() if not entry.is_dir()}


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built: Built) -> None:
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / PACKAGE).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    data = {"py.typed", "tools/visualize/page.html", "demo/models/target/model.safetensors"}
    assert files >= {f"{PACKAGE}/{name}" for name in data}
    names = set(contents(built.wheel))
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == files
    assert {name.partition(".dist-info/")[2] for name in about} == {
        *("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }


def test_the_sdist_builds_the_same_wheel(built: Built) -> None:
    assert contents(built.rebuilt) == contents(built.wheel)


def test_the_sdist_holds_the_sources_and_nothing_of_this_checkout(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        tops = {member.name.split("/")[1] for member in archive.getmembers()}
    made = {".git", ".tools", ".venv", ".venvs", ".cache", "demo", "dist", "gpu-report", "shared"}
    assert tops >= {PACKAGE, "reference", "tests", "pyproject.toml", "README.md", "LICENSE"}
    assert not tops & made


def test_the_installed_package_comes_from_the_wheel_and_every_module_imports(
    installed: Installed,
) -> None:
    where = installed.run("python", "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)").stdout
    assert Path(where.strip()).is_relative_to(installed.python.parents[1])
    names = set(installed.run("python", "-c", IMPORT_ALL).stdout.splitlines()[-1].split())
    assert {f"{PACKAGE}.{name}" for name in ("worker", "cpu.platform", "tools.bench.run")} <= names


def test_sglang_finds_the_entry_points_without_a_path_variable(installed: Installed) -> None:
    assert "PYTHONPATH" not in installed.variables
    found = installed.run("python", "-c", READ_ENTRY_POINTS).stdout
    assert found.split() == ["specvlm_cpu", f"{PACKAGE}.plugin", "specvlm", f"{PACKAGE}.plugin"]


def test_the_installed_command_lists_its_commands(installed: Installed) -> None:
    said = installed.run("specvlm", "--help").stdout
    assert all(name in said for name in ("doctor", "demo", "visualize", "bench", "soak"))


def test_the_installed_doctor_finds_that_the_shipped_pair_would_be_served(
    installed: Installed,
) -> None:
    pair = clip_and_pair(installed)
    said = installed.run(
        "specvlm", "doctor", "--target", pair["target"], "--draft", pair["draft"]
    ).stdout
    assert said.rstrip().endswith("Would serve.")


@pytest.mark.serving
def test_the_installed_package_serves_the_shipped_pair(
    installed: Installed, tmp_path: Path
) -> None:
    pair = clip_and_pair(installed)
    target = Path(pair["target"])
    assert target.is_relative_to(installed.python.parents[1])
    unset = dict.fromkeys(os.environ.keys() - installed.variables.keys())
    server = Server(
        target,
        *("--speculative-algorithm", "SPECVLM"),
        *("--speculative-draft-model-path", pair["draft"]),
        log=tmp_path / "server.log",
        env={**unset, **installed.variables},
        python=installed.python,
        folder=installed.folder,
    )
    with server:
        question = messages.user(installed.folder / "clip.mp4", pair["question"])
        answer = server.chat(question, max_tokens=48, return_meta_info=True)
    info = answer.raw["choices"][0]["meta_info"]
    report = info["specvlm"][0]
    assert report["cold"] is None
    assert 0 < report["kept_video_tokens"] < report["video_tokens"]
    assert info["spec_accept_length"] > 1


def clip_and_pair(installed: Installed) -> dict[str, str]:
    """Write clip.mp4 with the installed package; its question and the shipped models' paths."""
    found: dict[str, str] = json.loads(
        installed.run("python", "-c", MAKE_CLIP, str(installed.folder / "clip.mp4")).stdout
    )
    return found
