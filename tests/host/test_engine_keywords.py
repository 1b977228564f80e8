"""`sglang.Engine` with our settings as keywords: from its first line to its record."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from sglang.srt import plugins
from sglang.srt.entrypoints.engine import Engine
from sglang.srt.server_args import ServerArgs

from specvlm_sglang.host import engine_keywords
from tests.support.hooks import unhooked

RECORD = ("sglang.srt.entrypoints.engine", "Engine.server_args_class")


@pytest.fixture
def exported() -> Iterator[list[dict[str, Any]]]:
    """What engines were given of ours, one entry for each."""
    seen: list[dict[str, Any]] = []

    def export(keywords: Mapping[str, Any]) -> None:
        seen.append(dict(keywords))

    with unhooked(RECORD):
        engine_keywords.install(export)
        yield seen


def record_of(**keywords: Any) -> ServerArgs:
    """The record that an engine with these keywords makes; nothing is launched."""
    engine = object.__new__(Engine)
    return engine.server_args_class(**keywords)  # type: ignore[operator]


def test_ours_are_taken_and_the_rest_is_sglangs(exported: list[dict[str, Any]]) -> None:
    record = record_of(model_path="none", specvlm_retention=0.3, tp_size=2, specvlm_policy="frames")
    assert type(record) is ServerArgs
    assert (record.model_path, record.tp_size) == ("none", 2)
    assert exported == [{"specvlm_retention": 0.3, "specvlm_policy": "frames"}]


def test_an_engine_without_ours_is_told_so_that_the_ones_before_are_forgotten(
    exported: list[dict[str, Any]],
) -> None:
    record_of(model_path="none")
    assert exported == [{}]


def test_a_keyword_that_neither_knows_is_sglangs_to_refuse(exported: list[dict[str, Any]]) -> None:
    with pytest.raises(TypeError, match="retention"):
        record_of(model_path="none", retention=0.3)


def test_installing_twice_takes_them_once(exported: list[dict[str, Any]]) -> None:
    engine_keywords.install(lambda _: pytest.fail("installed twice"))
    record_of(model_path="none")
    assert len(exported) == 1


def test_where_plugins_are_loaded_before_the_engines_module_it_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Mapping[str, Any]] = []
    with unhooked(RECORD, ("sglang.srt.plugins", "load_plugins")):
        module = sys.modules[RECORD[0]]
        monkeypatch.delitem(sys.modules, RECORD[0])
        engine_keywords.install(seen.append)
        plugins.load_plugins()
        assert Engine.server_args_class is ServerArgs
        monkeypatch.setitem(sys.modules, RECORD[0], module)
        plugins.load_plugins()
        record_of(model_path="none", specvlm_audit=1.0)
    assert seen == [{"specvlm_audit": 1.0}]


FIRST_ENGINE = """
{early}
from sglang.srt.entrypoints.engine import Engine
try:
    Engine(model_path="none", specvlm_retention=1.5)
except ValueError as error:
    print("said:", error)
"""
EARLY = "from sglang.srt.plugins import load_plugins; load_plugins()"


@pytest.mark.slow
@pytest.mark.parametrize("early", ["", EARLY], ids=["first", "plugins loaded before"])
def test_the_first_engine_of_a_process_refuses_a_value_by_its_keyword(early: str) -> None:
    # Its plugins are loaded within its construction; or before SGLang's engine was imported.
    program = FIRST_ENGINE.format(early=early)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert "said: specvlm_retention=1.5 must be a number in (0, 1]" in done.stdout, done.stderr
