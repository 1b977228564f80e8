"""What we rely on in SGLang is there, and anything else is refused before it is touched."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specvlm_sglang import plugin
from specvlm_sglang.host import contract
from specvlm_sglang.host.contract import HostMismatchError
from specvlm_sglang.host.symbol import Symbol, fields
from tests.support.hooks import unhooked

HOST = "specvlm_test_host"
SOURCE = """
class Base:
    def __init__(self):
        self.pages: int = 1
class Pool(Base):
    size: int
    def __init__(self, rows):
        super().__init__()
        self.rows, other.lost = rows, rows
        self._reset()
    def _reset(self):
        self.used = 0
    def free(self, index, *, group=None): ...
def run(batch, *args, **kwargs): ...
limit = 3
"""


@pytest.fixture(autouse=True)
def uncached() -> Iterator[None]:
    contract.require.cache_clear()
    contract.require_version.cache_clear()
    yield
    contract.require.cache_clear()
    contract.require_version.cache_clear()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A module with a source file, as SGLang's have."""
    (tmp_path / f"{HOST}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop(HOST, None)


@pytest.fixture
def other_version(monkeypatch: pytest.MonkeyPatch) -> str:
    installed = importlib.metadata.version

    def version(name: str) -> str:
        return "0.6.1" if name == "sglang" else installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(contract, "mismatches", lambda room=None: pytest.fail("imported SGLang"))
    return "0.6.1"


def test_the_whole_table_matches_the_installed_sglang() -> None:
    assert contract.installed_version() == contract.SGLANG_VERSION
    assert contract.mismatches() == []


def test_every_room_is_in_the_table_and_none_is_empty() -> None:
    table = contract.rooms()
    assert {"platform", "video", "flags", "algorithm", "worker", "kernels"} <= set(table)
    assert [room for room, symbols in table.items() if not symbols] == []
    for room in table:
        contract.require(room)


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    "symbol",
    [
        Symbol(f"{HOST}:limit"),
        Symbol(f"{HOST}:Pool"),
        # A dataclass field without a default is in the annotations alone.
        Symbol(f"{HOST}:Pool.size"),
        # Others are set by methods, its own or inherited ones.
        *fields(f"{HOST}:Pool", "rows", "used", "pages"),
        Symbol(f"{HOST}:Pool.free", ("index", "group")),
        Symbol(f"{HOST}:run", ("batch",)),
    ],
    ids=lambda symbol: symbol.path,
)
def test_a_symbol_that_is_there_as_expected_is_no_mismatch(symbol: Symbol) -> None:
    assert symbol.mismatch() is None


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("symbol", "message"),
    [
        (Symbol(f"{HOST}:Pool.alloc"), f"{HOST}:Pool.alloc: missing"),
        (Symbol(f"{HOST}:Pool.lost"), f"{HOST}:Pool.lost: missing"),
        (Symbol(f"{HOST}:Table.free"), f"{HOST}:Table.free: missing"),
        (Symbol(f"{HOST}:Pool.free", ("index", "rows")), f"{HOST}:Pool.free: no longer takes rows"),
        (Symbol(f"{HOST}:run", ("a", "batch", "b")), f"{HOST}:run: no longer takes a, b"),
        (Symbol(f"{HOST}:limit", ("x",)), f"{HOST}:limit: has no signature any more"),
        (Symbol("specvlm_gone:x"), "specvlm_gone: cannot be imported (No module named"),
    ],
)
def test_a_symbol_that_moved_or_changed_is_named_with_what_changed(
    symbol: Symbol, message: str
) -> None:
    assert str(symbol.mismatch()).startswith(message)


def test_the_table_is_compared_with_sglangs_own_functions_under_our_hooks() -> None:
    from specvlm_sglang.host import flags

    module = "sglang.srt.server_args"
    with unhooked((module, "ServerArgs.add_cli_args"), (module, "ServerArgs.from_cli_args")):
        flags.install(lambda parser: None, after_parsing=lambda arguments: None)
        assert contract.mismatches("flags") == []


def test_a_broken_room_is_refused_with_its_mismatches_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = {
        "good": (Symbol("sglang.version:__version__"),),
        "bad": (Symbol("sglang.version:gone"), Symbol("sglang.version:gone_too")),
    }
    monkeypatch.setattr(contract, "rooms", lambda: broken)
    contract.require("good")
    with pytest.raises(HostMismatchError) as refusal:
        contract.require("bad")
    assert str(refusal.value).splitlines() == [
        "specvlm-sglang works with SGLang 0.5.23; found 0.5.23, with other contents.",
        "  - sglang.version:gone: missing",
        "  - sglang.version:gone_too: missing",
        "Fix: pip install 'sglang==0.5.23'",
    ]


def test_an_unknown_room_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"room='kitchen' is not one of \['adaptive', 'algorithm'"):
        contract.mismatches("kitchen")


ROOMS = {
    "flags": (
        "specvlm_sglang.host.flags",
        {"add_flags": print, "after_parsing": print},
        [
            ("sglang.srt.server_args", "ServerArgs.add_cli_args"),
            ("sglang.srt.server_args", "ServerArgs.from_cli_args"),
        ],
    ),
    "video": (
        "specvlm_sglang.host.media.install",
        {},
        [("sglang.srt.utils.video_decoder", "VideoDecoderWrapper.__init__")],
    ),
    "requests": (
        "specvlm_sglang.host.request_validation",
        {"check": print},
        [
            ("sglang.srt.sampling.sampling_params", "SamplingParams.verify"),
            ("sglang.srt.managers.tokenizer_manager", "TokenizerManager._validate_one_request"),
        ],
    ),
    "responses": (
        "specvlm_sglang.host.response_report",
        {"key": "ours", "new_report": print},
        [
            (
                "sglang.srt.managers.tokenizer_manager",
                "TokenizerManager._accumulate_request_meta_info",
            ),
            ("sglang.srt.managers.tokenizer_manager", "TokenizerManager._handle_abort_req"),
        ],
    ),
    "vision": (
        "specvlm_sglang.cpu.vision_attention",
        {},
        [("sglang.srt.layers.attention.vision", "VisionSdpaAttention.forward")],
    ),
    "min-p": (
        "specvlm_sglang.host.min_p",
        {},
        [("sglang.srt.speculative.eagle_utils", "tree_speculative_sampling_target_only")],
    ),
}


def held(module: str, attribute: str) -> Any:
    found: Any = importlib.import_module(module)
    for name in attribute.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_broken_room_installs_nothing(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, arguments, targets = ROOMS[room]
    table = {**contract.rooms(), room: (Symbol("sglang.version:gone"),)}
    monkeypatch.setattr(contract, "rooms", lambda: table)
    with unhooked(*targets):
        before = [held(*target) for target in targets]
        with pytest.raises(HostMismatchError, match=r"sglang\.version:gone: missing"):
            importlib.import_module(module).install(**arguments)
        assert [held(*target) for target in targets] == before


def test_another_version_is_refused_by_it_alone_with_what_was_found_and_how_to_fix_it(
    other_version: str,
) -> None:
    for require in (contract.require_version, lambda: contract.require("flags")):
        with pytest.raises(HostMismatchError) as refusal:
            require()
        assert str(refusal.value).splitlines() == [
            f"specvlm-sglang works with SGLang 0.5.23; found {other_version}, "
            "so nothing was installed.",
            "Fix: pip install 'sglang==0.5.23'",
        ]


def test_a_missing_sglang_is_refused_without_looking_for_its_symbols(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(contract, "rooms", lambda: pytest.fail("looked"))
    with pytest.raises(HostMismatchError, match="found no SGLang"):
        contract.require_version()


@pytest.mark.usefixtures("other_version")
def test_with_another_version_the_plugin_registers_nothing_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    targets = [target for _, _, targets in ROOMS.values() for target in targets]
    with unhooked(*targets), caplog.at_level(logging.ERROR):
        before = [held(*target) for target in targets]
        plugin.register()
        assert plugin.activate_cpu_platform() is None
        assert [held(*target) for target in targets] == before
    assert len(caplog.messages) == 2
    assert all("found 0.6.1" in message for message in caplog.messages)


REGISTER = """
import logging, sys
logging.basicConfig(format="%(message)s")
from specvlm_sglang import plugin
plugin.register()
assert plugin.activate_cpu_platform() is None
heavy = {"torch", "sglang", "transformers", "numpy", "specvlm_sglang.algorithm"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("version", ["0.5.21", "0.5.22", "0.7.0"])
def test_another_sglang_on_the_path_is_refused_before_anything_heavy_is_imported(
    tmp_path: Path, version: str
) -> None:
    metadata = tmp_path / f"sglang-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n")
    repository = Path(contract.__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", REGISTER],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{repository}"},
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    refusal = [
        f"specvlm-sglang works with SGLang 0.5.23; found {version}, so nothing was installed.",
        "Fix: pip install 'sglang==0.5.23'",
    ]
    # Both entry points say so.
    assert run.stderr.splitlines() == refusal * 2
