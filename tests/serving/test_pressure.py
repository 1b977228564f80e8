"""Pools so small that requests queue, are preempted, evict each other's prefixes and lose drafts.

Answers stay the target's, and nothing is held when the last one has been sent.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from specvlm_sglang.report.observer import POOL_FULL
from specvlm_sglang.tools import client
from specvlm_sglang.tools.soak.health import when_idle
from tests.serving import specvlm
from tests.serving.specvlm import CHAIN, TREE, Case, ask, launch, meta, report, state
from tests.support.server import Server

pytestmark = [pytest.mark.serving, pytest.mark.slow]

NEW_TOKENS = 64
ROWS = 4
SMALL = (
    *("--max-total-tokens", "420"),
    *("--schedule-conservativeness", "0.1"),
    *("--max-running-requests", str(ROWS), "--context-length", "200"),
    *("--enable-priority-scheduling", "--default-priority-value", "0"),
    *("--retraction-policy", "priority", "--chunked-prefill-size", "48"),
)
"""Four rows, of which three long answers fill the pool; an urgent request preempts others."""
URGENT = {"priority": 100}


@pytest.fixture(scope="module")
def cases(vl_target: Path, clip_paths: list[Path], image_paths: list[Path]) -> list[Case]:
    return specvlm.cases(vl_target, clip_paths, image_paths)


@pytest.fixture(scope="module", params=["chain", "tree", "drafts itself"])
def server(request: Any, serve: Any, vl_target: Path, vl_draft: Path) -> Server:
    draft = None if request.param == "drafts itself" else vl_draft
    shape = TREE if request.param == "tree" else CHAIN
    pool = () if draft is None else ("--specvlm-draft-kv-tokens", "200")
    started: Server = serve(vl_target, *launch(draft, *shape), *SMALL, *pool)
    return started


@pytest.fixture(scope="module")
def long_cases(server: Server, cases: list[Case]) -> list[Case]:
    """The cases with long answers, each as the server gives it alone; they begin as expected."""
    found = []
    for case in cases:
        alone = ask(server, case, **length(NEW_TOKENS))
        # Where transformers ended, this one had to go on.
        same = case.expected if len(case.expected) == specvlm.NEW_TOKENS else case.expected[:-1]
        assert tuple(alone.output_ids[: len(same)]) == same
        found.append(dataclasses.replace(case, expected=tuple(alone.output_ids)))
    server.flush_cache()
    return found


def length(tokens: int) -> dict[str, int]:
    """Fields of a request for so many tokens.

    Not ``ignore_eos``: SGLang lets in no more of such requests than it has room for.
    """
    return {"max_tokens": tokens, "min_tokens": tokens}


def answer(server: Server, case: Case, **options: Any) -> Any:
    """A long greedy answer, compared with the one that the server gave alone."""
    found = ask(server, case, **length(NEW_TOKENS), **options)
    assert tuple(found.output_ids) == case.expected, case.messages
    return found


def gained(server: Server, before: dict[str, float], name: str) -> float:
    return server.metrics().get(name, 0.0) - before.get(name, 0.0)


def assert_nothing_is_held(server: Server) -> None:
    """No request, no slot of either pool, no row."""
    load = when_idle(server.url)
    assert load["num_running_reqs"] == load["num_waiting_reqs"] == 0
    server.flush_cache()
    assert when_idle(server.url)["num_used_tokens"] == 0
    if has_draft_pool(server):
        now = state(server)
        assert now["draft_kv_tokens_in_use"] == now["draft_kv_tokens_cached"] == 0
        assert now["draft_kv_tokens_free"] == now["draft_kv_tokens"]


def has_draft_pool(server: Server) -> bool:
    """Whether a draft model serves; a target that drafts for itself has nothing but its own KV."""
    found: str = state(server)["draft"]
    return found == "model"


def most_waiting(server: Server, work: Callable[[], Any]) -> int:
    """The longest queue seen while ``work`` runs."""
    seen, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            load = client.get_json(server.url, "/v1/loads")["loads"][0]
            assert load["num_running_reqs"] <= ROWS
            seen.append(load["num_waiting_reqs"])
            time.sleep(0.2)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            work()
        finally:
            done.set()
        watching.result()
    return max(seen)


def test_answers_are_right_under_retraction_eviction_and_a_queue(
    server: Server, long_cases: list[Case]
) -> None:
    before, drafts = server.metrics(), state(server)
    chosen = ({"retention": 0.1}, {"retention": 0.5, "policy": "uniform-grid"}, {"retention": 1.0})
    jobs = [(case, options) for options in chosen for case in long_cases]
    answers: list[Any] = []

    def work() -> None:
        with ThreadPoolExecutor(2 * ROWS) as pool:
            answers.extend(pool.map(lambda job: answer(server, job[0], **job[1]), jobs))

    assert most_waiting(server, work) > 0
    assert gained(server, before, "sglang:num_retracted_requests_total") > 0
    assert gained(server, before, "sglang:evicted_tokens_total") > 0
    assert any(meta(one)["cached_tokens"] for one in answers), "no prefix was shared"
    assert any(meta(one)["num_retractions"] for one in answers)
    # Some find no room for a draft, some lose theirs, and some keep it.
    small = has_draft_pool(server)
    assert {report(one)["cold"] for one in answers} == ({None, POOL_FULL} if small else {None})
    assert (state(server)["went_cold"] > drafts["went_cold"]) == small
    assert_nothing_is_held(server)


def test_an_urgent_request_preempts_others_which_go_on(
    server: Server, long_cases: list[Case]
) -> None:
    with ThreadPoolExecutor(3 * ROWS) as pool:
        slow = [pool.submit(answer, server, case, retention=0.5) for case in long_cases[:-1]]
        while client.get_json(server.url, "/v1/loads")["loads"][0]["num_waiting_reqs"] == 0:
            assert not any(one.done() for one in slow), "they have never waited"
            time.sleep(0.05)
        urgent = answer(server, long_cases[-1], retention=0.5, **URGENT)
        unfinished = [one for one in slow if not one.done()]
        preempted = [meta(one.result())["num_retractions"] for one in slow]
    assert unfinished, "the others were done before the urgent request"
    assert meta(urgent)["num_retractions"] == 0
    assert any(preempted), "nobody made room"
    assert_nothing_is_held(server)
