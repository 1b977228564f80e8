"""What ``specvlm`` prints, and which exit status it chooses."""

from __future__ import annotations

from typing import Any

import pytest

from specvlm_sglang.tools import cli
from specvlm_sglang.tools.errors import ToolError


def ending_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def fail(options: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "_demo", fail)
    return cli.main(["demo"])


@pytest.mark.parametrize("kind", [ToolError, ValueError, OSError])
def test_an_error_is_one_line_with_the_commands_name_and_status_1(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "--target [none]: " + "no such directory " * 20
    assert ending_with(kind(long), monkeypatch) == 1
    assert capsys.readouterr().err == f"specvlm demo: {long}\n"


def test_a_stopped_command_says_so_and_ends_with_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending_with(KeyboardInterrupt(), monkeypatch) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_a_programming_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="a bug"):
        ending_with(TypeError("a bug"), monkeypatch)


def test_doctor_takes_no_draft_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--draft", "d"])
    assert ended.value.code == 2
    assert "--draft needs --target" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["doctor", "demo", "visualize", "bench"])
def test_the_flags_are_shown(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert "--target" in shown
    assert "--draft" in shown
