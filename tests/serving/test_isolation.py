"""Two users whose prompts share their text: what one is given never comes from the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from specvlm_sglang.tools import client
from tests.serving.specvlm import CHAIN, chat_prompt, launch
from tests.support.server import Server

pytestmark = pytest.mark.serving

PROMPT = chat_prompt("What happens?", video=True)


@pytest.fixture(scope="module")
def server(serve: Any, vl_target: Path, vl_draft: Path) -> Server:
    started: Server = serve(vl_target, *launch(vl_draft, *CHAIN))
    return started


def ask(server: Server, clip: Path) -> dict[str, Any]:
    """An answer's tokens with what its draft was given: scores, and kept tokens in two stages."""
    options = {"specvlm": {"detail": True, "retention": 0.3}}
    found = server.generate(
        PROMPT, max_new_tokens=12, request={"video_data": [str(clip)]}, custom_params=options
    )
    detail = found["meta_info"]["specvlm"]["detail"]
    names = ("scores", "stage_one", "stage_two")
    return {"ids": found["output_ids"], **{name: detail[name] for name in names}}


def assert_same(found: list[dict[str, Any]], alone: list[dict[str, Any]]) -> None:
    for one, other in zip(found, alone, strict=True):
        # Sums of other batches round otherwise.
        assert one["scores"] == pytest.approx(other["scores"], rel=1e-3)
        assert {**one, "scores": None} == {**other, "scores": None}


def test_users_with_the_same_words_and_other_videos_get_what_each_gets_alone(
    server: Server, clip_paths: list[Path]
) -> None:
    alone = []
    for clip in clip_paths:
        client.flush_cache(server.url)
        alone.append(ask(server, clip))
    for place, one in enumerate(alone):
        for other in alone[:place]:
            assert one["scores"] != pytest.approx(other["scores"], rel=1e-2)
    # After one another out of the caches, then all at once, each three times.
    assert_same([ask(server, clip) for clip in clip_paths], alone)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda clip: ask(server, clip), clip_paths * 3))
    assert_same(found, alone * 3)
    assert client.specvlm_state(server.url)["draft_kv_tokens_in_use"] == 0
