"""`specvlm batch` against a real server: a folder of videos, one of them broken, in two runs."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from specvlm_sglang.tools.batch.run import run
from specvlm_sglang.tools.cli import _parser
from tests.serving import specvlm
from tests.serving.specvlm import CHAIN, launch
from tests.support.server import Server

pytestmark = pytest.mark.serving


def test_a_folder_is_answered_and_a_second_run_asks_what_failed_again(
    serve: Any, vl_target: Path, vl_draft: Path, clip_paths: list[Path], tmp_path: Path
) -> None:
    server: Server = serve(vl_target, *launch(vl_draft, *CHAIN))
    videos, out = tmp_path / "videos", tmp_path / "answers.jsonl"
    videos.mkdir()
    for clip in clip_paths[:3]:
        shutil.copy(clip, videos)
    (videos / "broken.mp4").write_bytes(b"no video")

    def batch() -> tuple[int, str]:
        asked = ["batch", str(videos), "--question", "What happens?", "--out", str(out)]
        limits = [
            "--url",
            server.url,
            "--max-tokens",
            str(specvlm.NEW_TOKENS),
            "--retention",
            "0.5",
        ]
        said = io.StringIO()
        options = _parser().parse_args([*asked, *limits])
        return run(options, Console(file=said, width=200)), said.getvalue()

    status, said = batch()
    assert status == 1
    assert "3 answered, 1 failed, 0 answered before" in said
    assert "broken.mp4: " in said
    entries = {entry["id"]: entry for entry in map(json.loads, out.read_text().splitlines())}
    assert set(entries) == {path.name for path in videos.iterdir()}
    assert "answer" not in entries["broken.mp4"]
    first = entries[clip_paths[0].name]
    alone = server.chat(
        [specvlm.user(clip_paths[0], "What happens?")[0]], max_tokens=specvlm.NEW_TOKENS
    )
    assert first["answer"] == alone.text
    assert first["tokens"] == len(alone.output_ids)
    assert first["specvlm"]["kept_video_tokens"] == first["specvlm"]["video_tokens"] // 2

    shutil.copy(clip_paths[3], videos / "broken.mp4")
    status, said = batch()
    assert status == 0
    assert "1 answered, 0 failed, 3 answered before" in said
    assert "answer" in json.loads(out.read_text().splitlines()[-1])
