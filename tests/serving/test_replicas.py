"""Several copies of the shipped pair: SGLang's data parallelism."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from specvlm_sglang.tools import demo
from specvlm_sglang.tools.launch import specvlm_arguments
from tests.support.messages import user
from tests.support.server import Server

pytestmark = [pytest.mark.serving, pytest.mark.slow]

NEW_TOKENS = 48
CLIPS = 4
COMMON = ("--dtype", "float32", "--specvlm-exact-vision", "--enable-metrics")
SPECVLM = (*COMMON, *specvlm_arguments(demo.draft_path()))
Messages = list[dict[str, Any]]


def ask(url: str, messages: Messages, **fields: Any) -> dict[str, Any]:
    """One greedy chat completion: text and ``meta_info``."""
    body = {
        "model": "default",
        "messages": messages,
        "temperature": 0,
        "max_tokens": NEW_TOKENS,
        "return_meta_info": True,
        **fields,
    }
    response = requests.post(f"{url}/v1/chat/completions", json=body, timeout=300)
    response.raise_for_status()
    (choice,) = response.json()["choices"]
    return {"text": choice["message"]["content"], **choice.get("meta_info", {})}


def ask_all(url: str, prompts: Sequence[Messages]) -> list[dict[str, Any]]:
    """All at once, answers in order."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda messages: ask(url, messages), prompts))


def totals(server: Server) -> list[dict[str, Any]]:
    """SPECVLM's figures of each replica of a server."""
    return [state["specvlm"] for state in server.server_info()["internal_states"]]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Messages]:
    """Two questions about each clip; a clip's begin alike, and no two clips' do."""
    folder = tmp_path_factory.mktemp("clips")
    asked = []
    for seed in range(CLIPS):
        clip = folder / f"clip-{seed}.mp4"
        scene = demo.make_clip(clip, 8_000_000_000 + seed, seconds=4 + seed)
        questions = [demo.description(scene)[0], demo.questions_and_answers(scene)[0][0]]
        asked += [user(f"Clip {seed} of {CLIPS}, seen now:", clip, text) for text in questions]
    return asked


@pytest.fixture(scope="module")
def expected(prompts: list[Messages], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a plain server answers, by prompt."""
    log = tmp_path_factory.mktemp("plain") / "server.log"
    found: dict[str, str] = {}
    with Server(demo.target_path(), *COMMON, log=log) as server:
        for messages in prompts:
            found[repr(messages)] = ask(server.url, messages)["text"]
    return found


def test_two_replicas_of_one_server_answer_as_plain_and_their_figures_add_up(
    tmp_path: Path, prompts: list[Messages], expected: dict[str, str]
) -> None:
    log = tmp_path / "server.log"
    with Server(demo.target_path(), *SPECVLM, "--dp-size", "2", log=log) as server:
        before = totals(server)
        assert len(before) == 2
        answers = ask_all(server.url, prompts)
        assert [answer["text"] for answer in answers] == [expected[repr(one)] for one in prompts]
        assert [answer["specvlm"]["cold"] for answer in answers] == [None] * len(prompts)
        after = totals(server)
        each = [
            new["video_requests"] - old["video_requests"]
            for new, old in zip(after, before, strict=True)
        ]
        assert sum(each) == len(prompts)
        assert min(each) > 0
        kept = [
            new["kept_video_tokens"] - old["kept_video_tokens"]
            for new, old in zip(after, before, strict=True)
        ]
        assert sum(kept) == sum(answer["specvlm"]["kept_video_tokens"] for answer in answers)
        counted = server.metrics()["specvlm_kept_video_tokens_total"]
        assert counted == sum(found["kept_video_tokens"] for found in after)
        assert [found["draft_kv_tokens_in_use"] for found in after] == [0, 0]
