"""Two tensor-parallel ranks on the CPU (gloo) serve the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.serving import plain
from tests.serving.plain import EXACT, ask_all, assert_as_transformers

pytestmark = pytest.mark.serving


def test_two_ranks_answer_text_images_and_videos_as_transformers_does(
    serve: Any, vl_target: Path, clip_paths: list[Path], image_paths: list[Path]
) -> None:
    server = serve(vl_target, *EXACT, "--tp-size", "2")
    assert server.server_info()["tp_size"] == 2
    prompts = [
        *plain.text_prompts(),
        *plain.image_prompts(image_paths)[:4],
        *plain.video_prompts(clip_paths, image_paths),
    ]
    assert_as_transformers(vl_target, prompts, ask_all(server, prompts, at_once=1))
    assert_as_transformers(vl_target, prompts, ask_all(server, prompts, at_once=8))
