"""The container's recipe, as Docker's own parser reads it. Nothing is built."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from specvlm_sglang.host.contract import SGLANG_VERSION

dockerfile = pytest.importorskip(
    "dockerfile", reason="no Dockerfile parser here: `uv sync` installs it"
)

ROOT = Path(__file__).resolve().parents[2]
INSTRUCTIONS = {
    *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL"),
    *("ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
}
RECIPE = ROOT / "deploy" / "container" / "Dockerfile"


@pytest.fixture(scope="module")
def commands() -> list[Any]:
    """Its instructions in order; syntax errors are the parser's."""
    return list(dockerfile.parse_file(str(RECIPE)))


def of(commands: list[Any], name: str) -> list[Any]:
    return [one for one in commands if one.cmd.upper() == name]


def wrong(commands: list[Any]) -> list[str]:
    """Instructions that Docker does not know, and words in brackets that are no JSON."""
    return [
        one.original
        for one in commands
        if one.cmd.upper() not in INSTRUCTIONS or ("[" in one.original) != bool(one.json)
    ]


def test_every_instruction_is_dockers_and_every_list_of_words_is_json(commands: list[Any]) -> None:
    assert not wrong(commands)


@pytest.mark.parametrize("line", ["COPIED a b", 'ENTRYPOINT ["a" "b"]', "ENTRYPOINT ['a']"])
def test_an_instruction_that_is_wrong_is_noticed(line: str) -> None:
    assert wrong(list(dockerfile.parse_string(f"FROM a\n{line}\n"))) == [line]


def test_a_recipe_that_cannot_be_parsed_is_noticed() -> None:
    with pytest.raises(dockerfile.GoParseError):
        dockerfile.parse_string("FROM a\nENV name\n")


def test_the_image_is_pinned_to_the_sglang_that_the_plugin_was_written_for(
    commands: list[Any],
) -> None:
    (pinned,) = of(commands, "ARG")
    assert pinned.value[0] == f"SGLANG_IMAGE=lmsysorg/sglang:v{SGLANG_VERSION}"
    assert [one.value[0] for one in of(commands, "FROM")] == ["${SGLANG_IMAGE}"]


def test_what_is_copied_is_there_and_is_all_that_the_wheel_is_built_from(
    commands: list[Any],
) -> None:
    copied = {source for one in of(commands, "COPY") for source in one.value[:-1]}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    packages = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert copied == needed | packages


def test_what_the_plugin_needs_beside_sglang_is_installed(commands: list[Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installs = " ".join(one.value[0] for one in of(commands, "RUN"))
    in_the_image = ("sglang==", "numpy")
    for needed in project["dependencies"]:
        assert needed.startswith(in_the_image) or f'"{needed}"' in installs


def test_the_server_runs_without_roots_rights_and_is_checked(commands: list[Any]) -> None:
    order = [one.cmd.upper() for one in commands]
    (user,) = of(commands, "USER")
    assert user.value[0].isdigit()
    assert int(user.value[0]) > 0
    assert order.index("USER") < order.index("ENTRYPOINT")
    assert "RUN" not in order[order.index("USER") :]
    (check,) = of(commands, "HEALTHCHECK")
    assert {flag.split("=")[0] for flag in check.flags} == {
        "--interval",
        "--timeout",
        "--start-period",
        "--retries",
    }
    assert "/health'" in check.original


def test_the_command_is_an_executable_with_words_that_sglang_knows(commands: list[Any]) -> None:
    (entry,) = of(commands, "ENTRYPOINT")
    assert entry.json
    assert list(entry.value[:2]) == ["sglang", "serve"]
    assert json.loads(entry.original.partition(" ")[2])[-1] == "--model-path"
    (port,) = of(commands, "EXPOSE")
    assert entry.value[entry.value.index("--port") + 1] == port.value[0]
