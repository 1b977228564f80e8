"""Who may import whom, read from the source; imports inside functions count too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "specvlm_sglang"

MAY_IMPORT = {
    "plugin": "algorithm config cpu host models",
    "algorithm": "config frontend host models report request worker",
    "worker": "config draft host lossless models report request scoring",
    "request": "config models policies pruning report scoring",
    "scoring": "copies host policies pruning report",
    "draft": "config copies host models pruning report request scoring",
    "report": "copies pruning",
    "pruning": "copies policies",
    "lossless": "copies host report",
    "models": "copies host",
    "frontend": "host",
    "cpu": "host",
    "host": "",
    "config": "policies pruning",
    "policies": "",
    "copies": "",
    "__init__": "",
}
"""Rooms of the package that serve, and what each may import beside itself.

plugin -> algorithm -> worker -> {draft, lossless} -> request -> scoring -> pruning -> models,
all of them -> host, and small modules that everybody may use. What host needs from above is handed
to its hooks when they are installed. `tools` may import all; none of them may import `tools`.
"""

TREES = {
    PACKAGE: {PACKAGE},
    "reference": {"reference"},
    "examples": {PACKAGE, "reference", "examples"},
    "benchmarks": {PACKAGE, "reference", "benchmarks", "tests"},
    "tests": {PACKAGE, "reference", "benchmarks", "examples", "tests"},
}
"""Directories of this repository, and which of them each may import."""


class Import(NamedTuple):
    """One imported name, absolute, and where."""

    file: Path
    line: int
    name: str

    @property
    def tree(self) -> str:
        return self.name.partition(".")[0]

    @property
    def room(self) -> str:
        """The room of the package that the name belongs to; "" for the package's own names."""
        room = self.name.split(".")[1] if "." in self.name else ""
        return room if room in MAY_IMPORT or room == "tools" else ""

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: imports {self.name}"


def imports_of(file: Path, root: Path = ROOT) -> Iterator[Import]:
    """Every import statement of a file, wherever it stands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = file.relative_to(root).parts[: -node.level] if node.level else ()
            start = ".".join((*above, *([node.module] if node.module else [])))
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (Import(file, node.lineno, name) for name in names)


def room_of(file: Path) -> str:
    """The room that a file of the package is, or is in."""
    return file.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


def files(tree: str) -> list[Path]:
    found = sorted((ROOT / tree).rglob("*.py"))
    assert found, f"{tree} has no Python files"
    return found


def against_the_rules() -> list[Import]:
    """Imports between rooms that the table does not allow."""
    return [
        one
        for file in files(PACKAGE)
        if room_of(file) != "tools"
        for one in imports_of(file)
        if one.tree == PACKAGE
        and one.room not in ("", room_of(file), *MAY_IMPORT[room_of(file)].split())
    ]


def test_every_room_says_what_it_may_import() -> None:
    rooms = {room_of(file) for file in files(PACKAGE)} - {"tools"}
    assert rooms == set(MAY_IMPORT), "a room without a row in MAY_IMPORT, or a row without its room"


def test_rooms_import_only_in_the_directions_allowed() -> None:
    wrong = [
        f"{one} ({room_of(one.file)} may import {MAY_IMPORT[room_of(one.file)] or 'nothing'})"
        for one in against_the_rules()
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_rules_go_round_in_no_circle() -> None:
    graph = {room: allowed.split() for room, allowed in MAY_IMPORT.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(MAY_IMPORT)


@pytest.mark.parametrize("tree", TREES)
def test_a_tree_imports_only_the_trees_it_may(tree: str) -> None:
    wrong = [
        str(one)
        for file in files(tree)
        for one in imports_of(file)
        if one.tree in TREES and one.tree not in TREES[tree]
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_reference_needs_nothing_but_numpy() -> None:
    wrong = [
        str(one)
        for file in files("reference")
        for one in imports_of(file)
        if one.tree not in ("reference", "numpy", *sys.stdlib_module_names)
    ]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("import specvlm_sglang.tools.cli", "specvlm_sglang.tools.cli"),
        ("def f():\n    from specvlm_sglang.tools import cli", "specvlm_sglang.tools.cli"),
        ("if TYPE_CHECKING:\n    from tests import conftest", "tests.conftest"),
        ("from .. import tools", "specvlm_sglang.tools"),
        ("from ..tools.cli import main", "specvlm_sglang.tools.cli.main"),
    ],
)
def test_an_import_is_read_in_every_form(statement: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / PACKAGE / "host" / "hook.py"
    file.parent.mkdir(parents=True)
    file.write_text(f"{statement}\n")
    assert [one.name for one in imports_of(file, tmp_path)] == [name]
