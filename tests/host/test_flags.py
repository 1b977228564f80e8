"""Our flags on SGLang's own parser."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

import pytest
from sglang.srt.server_args import ServerArgs, prepare_server_args

from specvlm_sglang.config import SpecVLMConfig, add_flags, export_flags
from specvlm_sglang.host import flags
from tests.support.hooks import unhooked

FLAGS = {
    "--specvlm-retention": ("0.2", "0.2"),
    "--specvlm-top-p": ("0.5", "0.5"),
    "--specvlm-policy": ("uniform", "uniform"),
    "--specvlm-max-query-rows": ("32", "32"),
    "--specvlm-draft-kv-tokens": ("512", "512"),
    "--specvlm-exact-vision": (None, "1"),
}


def variable(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_").upper()


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SpecVLMConfig]]:
    """SGLang's parser with our flags; the list grows by the settings at each parsing."""
    for flag in FLAGS:
        monkeypatch.setenv(variable(flag), "")
        monkeypatch.delenv(variable(flag))
    module = "sglang.srt.server_args"
    seen: list[SpecVLMConfig] = []
    with unhooked((module, "ServerArgs.add_cli_args"), (module, "ServerArgs.from_cli_args")):

        def export(arguments: argparse.Namespace) -> None:
            export_flags(arguments)
            seen.append(SpecVLMConfig.from_environment())

        flags.install(add_flags, after_parsing=export)
        yield seen


def sglang_help() -> str:
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return parser.format_help()


def test_help_shows_every_flag_in_a_group_of_ours_beside_sglangs() -> None:
    text = sglang_help()
    assert "--tp-size" in text
    group = text[text.index("\nSpecVLM:\n") :]
    assert [flag for flag in FLAGS if flag not in group] == []
    assert "SPECVLM_RETENTION" in group


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_reaches_the_environment_and_not_sglangs_record(flag: str) -> None:
    text, written = FLAGS[flag]
    record = prepare_server_args(["--model-path", "none", flag, *([text] if text else [])])
    assert os.environ[variable(flag)] == written
    assert isinstance(record, ServerArgs)
    assert record.model_path == "none"
    assert not hasattr(record, flag.removeprefix("--").replace("-", "_"))


def test_a_flag_wins_over_its_variable(
    monkeypatch: pytest.MonkeyPatch, installed: list[SpecVLMConfig]
) -> None:
    monkeypatch.setenv("SPECVLM_RETENTION", "0.5")
    monkeypatch.setenv("SPECVLM_TOP_P", "0.9")
    prepare_server_args(["--model-path", "none", "--specvlm-retention", "0.25"])
    (config,) = installed
    assert (config.retention, config.top_p) == (0.25, 0.9)


def test_what_depends_on_the_settings_runs_after_they_are_exported(
    installed: list[SpecVLMConfig],
) -> None:
    prepare_server_args(["--model-path", "none", "--specvlm-exact-vision"])
    assert [config.exact_vision for config in installed] == [True]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--specvlm-retention", "0"], r"--specvlm-retention=0\.0 must be a number in \(0, 1\]"),
        (["--specvlm-top-p", "7"], r"--specvlm-top-p=7\.0 must lie in \[0, 1\]"),
        (["--specvlm-policy", "best"], "--specvlm-policy='best' must be one of specvlm"),
        (["--specvlm-max-query-rows", "0"], "--specvlm-max-query-rows=0 must be at least 1"),
        (["--specvlm-draft-kv-tokens", "1"], "--specvlm-draft-kv-tokens=1 must be at least 2"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_flag(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_server_args(["--model-path", "none", *argv])


def test_text_where_a_number_belongs_is_refused_by_the_parser(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        prepare_server_args(["--model-path", "none", "--specvlm-retention", "some"])
    assert "--specvlm-retention: invalid float value: 'some'" in capsys.readouterr().err


def test_installing_twice_adds_the_flags_once(installed: list[SpecVLMConfig]) -> None:
    flags.install(add_flags, after_parsing=lambda _: pytest.fail("installed twice"))
    assert sglang_help().count("\nSpecVLM:\n") == 1
    prepare_server_args(["--model-path", "none"])
    assert len(installed) == 1


def test_a_subclass_of_sglangs_record_is_built_by_its_own_class() -> None:
    class Custom(ServerArgs):
        pass

    parser = argparse.ArgumentParser()
    Custom.add_cli_args(parser)
    parsed = parser.parse_args(["--model-path", "none"])
    assert type(Custom.from_cli_args(parsed)) is Custom
