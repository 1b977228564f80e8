"""Several copies of the shipped pair: SGLang's data parallelism, and its router."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from specvlm_sglang.tools import demo
from specvlm_sglang.tools import server as tools_server
from specvlm_sglang.tools.launch import specvlm_arguments
from tests.support import router
from tests.support.messages import user
from tests.support.router import Router
from tests.support.server import Server

pytestmark = [pytest.mark.serving, pytest.mark.slow]

NEW_TOKENS = 48
CLIPS = 4
COMMON = ("--dtype", "float32", "--specvlm-exact-vision", "--enable-metrics")
SPECVLM = (*COMMON, *specvlm_arguments(demo.draft_path(), steps=3))
Messages = list[dict[str, Any]]


def ask(url: str, messages: Messages, **fields: Any) -> dict[str, Any]:
    """One greedy chat completion: text and ``meta_info``, which the router does not ask for."""
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


def second_turn(first: Messages, answer: str, question: str) -> Messages:
    return [*first, {"role": "assistant", "content": answer}, *user(question)]


def totals(server: Server) -> list[dict[str, Any]]:
    """SPECVLM's figures of each replica of a server."""
    return [state["specvlm"] for state in server.server_info()["internal_states"]]


def answered(server: Server) -> int:
    return sum(found["video_requests"] for found in totals(server))


def found_cached(server: Server) -> float:
    """Prompt tokens that the server did not compute again, so far."""
    return server.metrics().get("sglang:cached_tokens_total", 0.0)


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
    """What a plain server answers, by prompt, second turns included."""
    log = tmp_path_factory.mktemp("plain") / "server.log"
    found: dict[str, str] = {}
    with Server(demo.target_path(), *COMMON, log=log) as server:
        for messages in prompts:
            found[repr(messages)] = ask(server.url, messages)["text"]
        for messages in prompts[::2]:
            further = second_turn(messages, found[repr(messages)], "And how many shapes?")
            found[repr(further)] = ask(server.url, further)["text"]
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


@pytest.fixture
def behind_router(tmp_path: Path) -> Iterator[tuple[str, list[Server]]]:
    """A router's URL, and the two servers behind it."""
    if router.command() is None:
        pytest.skip("sglang-router is not installed: `uv sync --group router`")
    with ExitStack() as stack:
        servers = []
        for number in range(2):
            server = Server(demo.target_path(), *SPECVLM, log=tmp_path / f"server-{number}.log")
            tools_server.Server.start(server)  # Without waiting: both start at once.
            stack.callback(server.stop)
            servers.append(server)
        tools_server.wait_until_ready(servers)
        urls = [server.url for server in servers]
        yield stack.enter_context(Router(urls, log=tmp_path / "router.log")).url, servers


def test_a_router_keeps_a_videos_questions_together_and_outlives_a_replica(
    behind_router: tuple[str, list[Server]], prompts: list[Messages], expected: dict[str, str]
) -> None:
    url, servers = behind_router
    # A video's further question goes where its tokens are.
    for messages in prompts[::2]:
        before, cached = [answered(one) for one in servers], [found_cached(one) for one in servers]
        first = ask(url, messages)
        assert first["text"] == expected[repr(messages)]
        further = second_turn(messages, first["text"], "And how many shapes?")
        assert ask(url, further)["text"] == expected[repr(further)]
        gained = [answered(server) - old for server, old in zip(servers, before, strict=True)]
        assert sorted(gained) == [0, 2], "the two questions went to two replicas"
        chosen = gained.index(2)
        reused = found_cached(servers[chosen]) - cached[chosen]
        video = ask(servers[chosen].url, messages)["specvlm"]["video_tokens"]
        assert reused >= video > 0
    # Both have work: many requests at once are balanced.
    before = [answered(server) for server in servers]
    answers = ask_all(url, prompts)
    assert [answer["text"] for answer in answers] == [expected[repr(one)] for one in prompts]
    assert sum(answered(server) for server in servers) == sum(before) + len(prompts)

    # One replica dies in the middle: what the other had goes on, and so does the router.
    long = {"max_tokens": 400, "ignore_eos": True}
    whole = ask(servers[1].url, prompts[0], **long)["text"]
    with ThreadPoolExecutor(1 + len(prompts)) as pool:
        kept = pool.submit(ask, servers[1].url, prompts[0], **long)
        asked = [pool.submit(ask, url, messages, **long) for messages in prompts]
        wait_for_work(servers[0])
        kill(servers[0])
        ended = [future.exception() for future in asked]
        assert kept.result()["text"] == whole
    for messages, future, error in zip(prompts, asked, ended, strict=True):
        if error is None:
            text = future.result()["text"]
            assert text.startswith(expected[repr(messages)][:20])
        else:
            assert isinstance(error, requests.RequestException)
    assert any(error is None for error in ended), "the other replica's requests were lost too"
    wait_until_answers(url, prompts[0])
    answers = ask_all(url, prompts)
    assert [answer["text"] for answer in answers] == [expected[repr(one)] for one in prompts]


def wait_for_work(server: Server, seconds: float = 120.0) -> None:
    """Until a request holds tokens of its draft's cache."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(found["draft_kv_tokens_in_use"] for found in totals(server)):
            return
        time.sleep(0.05)
    raise AssertionError("no request reached the replica")


def kill(server: Server) -> None:
    for process in server.processes():
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def wait_until_answers(url: str, messages: Messages, seconds: float = 60.0) -> None:
    """Until the router has found out which replica is gone."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            ask(url, messages)
        except requests.RequestException:
            assert time.monotonic() < deadline, "the router does not go on"
            time.sleep(1)
        else:
            return
