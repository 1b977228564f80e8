"""Requests for no token (``max_new_tokens: 0``), beside a plain server of the same target."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.serving.specvlm import chat_prompt, launch_beside_plain, launch_plain, state
from tests.support.server import Server

pytestmark = pytest.mark.serving

LOGPROBS = {
    "return_logprob": True,
    "logprob_start_len": 0,
    "top_logprobs_num": 2,
    "token_ids_logprob": [5, 6],
}
EXACT = ("prompt_tokens", "completion_tokens", "finish_reason", "reasoning_tokens")
LISTS = (
    "input_token_logprobs",
    "output_token_logprobs",
    "input_top_logprobs",
    "output_top_logprobs",
    "input_token_ids_logprobs",
    "output_token_ids_logprobs",
)
# float32 rows of other batch shapes.
ATOL = 1e-4


@pytest.fixture
def servers(serve: Any, vl_target: Path) -> list[Server]:
    """The plain one and the one under test, with nothing in their caches."""
    found = [serve(vl_target, *launch_plain()), serve(vl_target, *launch_beside_plain(vl_target))]
    for server in found:
        server.flush_cache()
    return found


def same(plain: dict[str, Any], other: dict[str, Any]) -> None:
    assert (other["text"], other["output_ids"]) == (plain["text"], plain["output_ids"])
    expected, found = plain["meta_info"], other["meta_info"]
    for name in EXACT:
        assert found[name] == expected[name], name
    for name in LISTS:
        assert (name in found) == (name in expected), name
        assert len(found.get(name, [])) == len(expected.get(name, [])), name
        assert list(flat(found.get(name))) == pytest.approx(
            list(flat(expected.get(name))), abs=ATOL
        ), name


def flat(value: Any) -> Any:
    """Numbers in nested lists, -1 for None."""
    if isinstance(value, list):
        for item in value:
            yield from flat(item)
    else:
        yield -1.0 if value is None else value


def tokens(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(10, 400), k=count)


@pytest.mark.parametrize("length", [9, 75], ids=["one chunk", "three chunks"])
@pytest.mark.parametrize("request_fields", [{}, LOGPROBS], ids=["alone", "with log probabilities"])
def test_an_answer_of_no_token_is_that_of_plain_decoding(
    servers: list[Server], length: int, request_fields: dict[str, Any]
) -> None:
    prompt = tokens(length, 0)
    plain, other = (
        server.generate(prompt, max_new_tokens=0, request=request_fields) for server in servers
    )
    assert plain["output_ids"] == []
    assert plain["meta_info"].get("output_token_logprobs", []) == []
    same(plain, other)
    assert "specvlm" not in other["meta_info"]


def test_beside_other_requests_in_one_pass_it_is_that_of_plain_decoding_alone(
    servers: list[Server],
) -> None:
    """Beside others SGLang's plain decoding has a log probability of a token that is not there."""
    # A batch of token ids reaches the scheduler as one message, and fits one pass.
    prompts = [tokens(count, count) for count in (7, 8, 9)]
    sampling = [{"temperature": 0, "max_new_tokens": length} for length in (0, 12, 0)]
    together = {
        "input_ids": prompts,
        "sampling_params": sampling,
        **{name: [value] * 3 for name, value in LOGPROBS.items()},
    }
    alone = [
        {"input_ids": ids, "sampling_params": chosen, **LOGPROBS}
        for ids, chosen in zip(prompts, sampling, strict=True)
    ]
    given = []
    for server, body in ((servers[1], together), *((servers[0], body) for body in alone)):
        response = requests.post(f"{server.url}/generate", json=body, timeout=300)
        response.raise_for_status()
        given.append(response.json())
    for plain, other, chosen in zip(given[1:], given[0], sampling, strict=True):
        assert plain["meta_info"]["completion_tokens"] == chosen["max_new_tokens"]
        same(plain, other)


def test_chunks_of_such_a_request_beside_a_running_answer_change_neither(
    servers: list[Server],
) -> None:
    long, short = tokens(90, 3), tokens(6, 4)
    body = {
        "input_ids": [short, long, short],
        "sampling_params": [{"temperature": 0, "max_new_tokens": n} for n in (30, 0, 0)],
        **{name: [value] * 3 for name, value in LOGPROBS.items()},
    }
    answers = []
    for server in servers:
        response = requests.post(f"{server.url}/generate", json=body, timeout=300)
        response.raise_for_status()
        answers.append(response.json())
    for plain, other in zip(*answers, strict=True):
        same(plain, other)


def test_a_video_of_which_nothing_is_asked_costs_no_draft(
    servers: list[Server], clip_paths: list[Path]
) -> None:
    before = state(servers[1])
    fields = {**LOGPROBS, "video_data": [str(clip_paths[0])]}
    prompt = chat_prompt("What happens?", video=True)
    same(*(server.generate(prompt, max_new_tokens=0, request=fields) for server in servers))
    after = state(servers[1])
    assert after["draft_kv_tokens_in_use"] == 0
    for phase in ("scoring", "draft_prefill"):
        assert after["phases"][phase]["calls"] == before["phases"][phase]["calls"]
    # The prompt's rows are in the cache: another answer begins from them.
    chosen = {"custom_params": {"specvlm": {"retention": 0.5}}}
    answers = [
        server.generate(prompt, request={"video_data": [str(clip_paths[0])]}, **sampling)
        for server, sampling in zip(servers, ({}, chosen), strict=True)
    ]
    same(*answers)
    assert answers[1]["meta_info"]["cached_tokens"] > 0
    assert answers[1]["meta_info"]["specvlm"]["cold"] is None


def test_scores_of_labels_are_those_of_plain_decoding(servers: list[Server]) -> None:
    body = {
        "query": tokens(8, 5),
        "items": [tokens(count, count) for count in (3, 5, 40)],
        "label_token_ids": [20, 21, 22],
        "apply_softmax": True,
        "model": "m",
    }
    scores = []
    for server in servers:
        response = requests.post(f"{server.url}/v1/score", json=body, timeout=300)
        response.raise_for_status()
        scores.append(response.json()["scores"])
    assert list(flat(scores[1])) == pytest.approx(list(flat(scores[0])), abs=ATOL)


def test_several_answers_to_one_prompt_count_as_so_many_prompts(
    servers: list[Server], clip_paths: list[Path]
) -> None:
    # SGLang prefills the prompt once before, by a request for no token.
    before = state(servers[1])["requests"]
    prompt = chat_prompt("What happens?", video=True)
    fields = {"video_data": [str(clip_paths[0])]}
    answers = servers[1].generate(prompt, request=fields, n=3)
    expected = servers[0].generate(prompt, request=fields)
    for answer in answers:
        same(expected, answer)
        assert answer["meta_info"]["specvlm"]["video_tokens"] > 0
    assert state(servers[1])["requests"] - before == 3
