"""Which pair a tool serves."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from specvlm_sglang.tools import demo
from specvlm_sglang.tools import pair as pair_module
from specvlm_sglang.tools.errors import ToolError
from specvlm_sglang.tools.pair import choose_pair

CONSOLE = Console(quiet=True)


def test_without_models_the_shipped_pair_is_served_as_it_is_or_enlarged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = choose_pair(None, None, 0, CONSOLE)
    assert (small.target, small.draft) == (str(demo.target_path()), str(demo.draft_path()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    large = choose_pair(None, None, 60_000_000, CONSOLE)
    assert Path(large.target).is_relative_to(tmp_path)
    assert (Path(large.target) / "config.json").is_file()
    assert large.draft == small.draft
    assert small.shipped
    assert large.shipped
    assert "about 60M parameters" in large.note


def test_the_shipped_draft_is_enlarged_with_its_kv_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pair = choose_pair(None, None, 0, CONSOLE, draft_parameters=6_000_000, draft_kv_heads=2)
    assert pair.target == str(demo.target_path())
    text = json.loads((Path(pair.draft) / "config.json").read_text())["text_config"]
    assert (text["num_hidden_layers"], text["num_key_value_heads"]) == (16, 2)
    assert "draft enlarged to about 6M parameters and 2 KV heads" in pair.note
    with pytest.raises(ValueError, match=r"--draft-parameters 6000000: kv_heads must be .* got 3"):
        choose_pair(None, None, 0, CONSOLE, draft_parameters=6_000_000, draft_kv_heads=3)


def test_only_the_shipped_draft_is_enlarged() -> None:
    with pytest.raises(ToolError, match="--draft-parameters 5 enlarges the shipped draft only"):
        choose_pair("T", "D", 0, CONSOLE, draft_parameters=5)
    with pytest.raises(ToolError, match="--draft-kv-heads 2 needs --draft-parameters"):
        choose_pair(None, None, 0, CONSOLE, draft_kv_heads=2)


def test_models_of_the_user_are_served_as_named_with_the_home_directory_spelled_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "target").mkdir()
    found = choose_pair("~/target", "Qwen/a-draft", 0, CONSOLE)
    assert (found.target, found.draft) == (str(tmp_path / "target"), "Qwen/a-draft")
    assert not found.shipped


@pytest.mark.parametrize("models", [("target", None), (None, "draft")])
def test_one_model_without_the_other_is_refused(models: tuple[str | None, str | None]) -> None:
    with pytest.raises(ToolError, match=r"^--target and --draft go together$"):
        choose_pair(*models, 0, CONSOLE)


def test_a_disk_too_small_for_the_enlarged_target_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    full = SimpleNamespace(free=2 << 30)
    monkeypatch.setattr(pair_module.shutil, "disk_usage", lambda folder: full)
    with pytest.raises(ToolError, match=r"has less than 2\.3 GB free for the enlarged target"):
        choose_pair(None, None, 60_000_000, CONSOLE)
