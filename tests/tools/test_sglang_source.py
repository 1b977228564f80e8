"""`specvlm doctor --sglang`: the contract against source that is not installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from specvlm_sglang.host import contract
from specvlm_sglang.host.symbol import Symbol
from specvlm_sglang.host.symbols import SYMBOLS
from specvlm_sglang.tools import cli
from specvlm_sglang.tools.errors import ToolError
from specvlm_sglang.tools.sglang_source import compare

SYMBOLS_OF_ALL = [symbol for symbols in SYMBOLS.values() for symbol in symbols]


def installed() -> Path:
    import sglang

    return Path(sglang.__file__).parent


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with a package that has each way of holding a name."""
    package = tmp_path / "python" / "sglang" / "srt"
    (package / "rooms").mkdir(parents=True)
    (package / "__init__.py").write_text("from sglang.srt.pool import *\n")
    (package / "pool.py").write_text(
        "import torch\n"
        "from dataclasses import dataclass\n"
        "from .base import Base as Parent\n"
        "@dataclass\n"
        "class Fields(Parent):\n"
        "    rows: int\n"
        "class Pool(Parent):\n"
        "    def __init__(self, rows): self.used = 0\n"
        "    def free(self, index, *, group=None): ...\n"
        "class Layer(torch.nn.Module): ...\n"
        "if torch.cuda.is_available():\n"
        "    limit = 3\n"
    )
    (package / "base.py").write_text("class Base:\n    size: int\n    def clear(self): ...\n")
    (package / "rooms" / "inner.py").write_text("def run(batch): ...\n")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("sglang.srt.pool:Pool", ("rows",)),
        ("sglang.srt.pool:Pool.used", ()),
        ("sglang.srt.pool:Pool.free", ("index", "group")),
        ("sglang.srt.pool:Pool.clear", ()),
        ("sglang.srt.pool:Fields", ("rows", "size")),
        ("sglang.srt.pool:Layer.forward", ()),
        ("sglang.srt.pool:limit", ()),
        ("sglang.srt:Pool", ("rows",)),
        ("sglang.srt.rooms:inner", ()),
        ("sglang.srt.rooms.inner:run", ("batch",)),
    ],
)
def test_what_is_there_is_found(tree: Path, path: str, parameters: tuple[str, ...]) -> None:
    assert compare(tree, [Symbol(path, parameters)]) == []


@pytest.mark.parametrize(
    ("path", "parameters", "said"),
    [
        ("sglang.srt.gone:Pool", (), "sglang.srt.gone: no such module"),
        ("sglang.srt.pool:Gone", (), "sglang.srt.pool:Gone: missing"),
        ("sglang.srt.pool:Pool.gone", (), "sglang.srt.pool:Pool.gone: missing"),
        ("sglang.srt.pool:Pool.free", ("rows",), "sglang.srt.pool:Pool.free: no longer takes rows"),
        ("sglang.srt.pool:Fields", ("gone",), "sglang.srt.pool:Fields: no longer takes gone"),
        ("sglang.srt.rooms:gone", (), "sglang.srt.rooms:gone: missing"),
    ],
)
def test_what_moved_is_named(tree: Path, path: str, parameters: tuple[str, ...], said: str) -> None:
    assert compare(tree, [Symbol(path, parameters)]) == [said]


def test_the_installed_source_has_all_that_the_imported_one_has() -> None:
    assert contract.installed_version() == contract.SGLANG_VERSION
    assert compare(installed(), SYMBOLS_OF_ALL) == []


def test_the_command_lists_what_moved_by_room_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "sglang"
    wanted = shutil.ignore_patterns("multimodal_gen", "test", "*.so", "__pycache__")
    shutil.copytree(installed(), copy, ignore=wanted)
    file = copy / "srt" / "mem_cache" / "memory_pool.py"
    file.write_text(file.read_text().replace("attach_aux_cache", "attach_other_cache"))
    assert cli.main(["doctor", "--sglang", str(tmp_path)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith(":")
    moved = "  sglang.srt.mem_cache.memory_pool:ReqToTokenPool.attach_aux_cache: missing"
    assert said.count(moved) == len(said) // 2
    assert said[-1].startswith(f"{len(said) // 2} of ")


def test_a_folder_without_sglang_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="no package sglang"):
        compare(tmp_path, [])
