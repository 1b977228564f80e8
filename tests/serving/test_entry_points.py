"""`sglang serve`, SGLang's command beside ``python -m sglang.launch_server``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from sglang.cli import serve as command
from sglang.srt.plugins import load_plugins

from specvlm_sglang.config import SpecVLMConfig
from tests.serving import specvlm
from tests.support.server import Server


class Served(Server):
    """A server that is started by the command."""

    @property
    def command(self) -> list[str]:
        script = Path(sys.executable).parent / "sglang"
        _, _, _, _, model, *rest = super().command
        return [str(script), "serve", model, *rest]


@pytest.mark.serving
@pytest.mark.slow
def test_sglang_serve_serves_specvlm_with_its_flags(
    tmp_path: Path,
    vl_target: Path,
    vl_draft: Path,
    clip_paths: list[Path],
    image_paths: list[Path],
) -> None:
    cases = specvlm.cases(vl_target, clip_paths, image_paths)[:2]
    launch = specvlm.launch(vl_draft, *specvlm.CHAIN, "--specvlm-retention", "0.5")
    with Served(vl_target, *launch, log=tmp_path / "server.log") as server:
        assert server.command[1:3] == ["serve", str(vl_target)]
        assert specvlm.state(server)["retention"] == 0.5
        for case in cases:
            answer = specvlm.ask(server, case)
            assert tuple(answer.output_ids) == case.expected
        kept = specvlm.report(answer)
        assert kept["cold"] is None
        assert kept["kept_video_tokens"] == kept["video_tokens"] // 2 == case.video_tokens // 2 > 0


def test_sglang_serve_reads_our_flags_before_it_runs_a_server(
    monkeypatch: pytest.MonkeyPatch, vl_target: Path
) -> None:
    load_plugins()
    monkeypatch.setenv("SPECVLM_RETENTION", "1.0")
    started: list[Any] = []
    monkeypatch.setattr("sglang.launch_server.run_server", started.append)
    # At its end the command ends all children of this process: servers of other tests.
    monkeypatch.setattr(command, "kill_process_tree", lambda *args, **kwargs: None)
    command.serve(None, [str(vl_target), "--specvlm-retention", "0.25", "--tp-size", "2"])
    assert SpecVLMConfig.from_environment().retention == 0.25
    assert [(args.model_path, args.tp_size) for args in started] == [(str(vl_target), 2)]
