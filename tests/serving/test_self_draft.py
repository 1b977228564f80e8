"""A target that drafts for itself in a real server: its own tokens, and nothing but its own memory.

Other families: tests/serving/test_families.py and test_video_llava_onevision.py.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import requests

from specvlm_sglang.draft.self_start import NOTHING_TO_MIX
from specvlm_sglang.pruning.registry import find_policy, shipped_policies
from specvlm_sglang.tools.launch import specvlm_arguments
from specvlm_sglang.tools.soak.health import when_idle
from tests.serving import specvlm
from tests.serving.specvlm import (
    CHAIN,
    FLOAT32,
    TREE,
    ask,
    ask_all,
    chat_prompt,
    meta,
    report,
    state,
)
from tests.support.server import Server

pytestmark = pytest.mark.serving

CHUNKS = ("--chunked-prefill-size", "16")
"""Smaller than a video: its tokens and its query rows fall into different passes."""
RETENTIONS = (0.05, 0.25, 1.0)
POLICIES = tuple(name for name in shipped_policies() if not find_policy(name).merges)
LAUNCH = (*FLOAT32, *CHUNKS, *specvlm_arguments(None), *CHAIN)


@pytest.fixture(scope="module")
def cases(vl_target: Path, clip_paths: list[Path], image_paths: list[Path]) -> list[specvlm.Case]:
    return specvlm.cases(vl_target, clip_paths, image_paths)


@pytest.fixture
def server(serve: Any, vl_target: Path) -> Server:
    started: Server = serve(vl_target, *LAUNCH)
    return started


def used_tokens(server: Server) -> int:
    """KV slots of the target that anybody holds, on an idle server with an empty radix cache."""
    when_idle(server.url)
    server.flush_cache()
    used: int = when_idle(server.url)["num_used_tokens"]
    return used


def test_tokens_are_the_targets_own_over_retentions_policies_cache_states_and_concurrency(
    server: Server, cases: list[specvlm.Case]
) -> None:
    jobs: list[tuple[specvlm.Case, dict[str, Any]]] = [
        (case, {"retention": retention}) for retention, case in product(RETENTIONS, cases)
    ]
    jobs += [
        (cases[number], {"retention": 0.25, "policy": policy})
        for policy, number in product(POLICIES, (1, 4))
    ]
    random.Random(0).shuffle(jobs)
    half = len(jobs) // 2
    server.flush_cache()
    answers = ask_all(server, jobs[:half], at_once=1) + ask_all(server, jobs[half:], at_once=8)
    wrong = [
        (chosen, case.messages[-1]["content"])
        for (case, chosen), answer in zip(jobs, answers, strict=True)
        if tuple(answer.output_ids) != case.expected
    ]
    assert not wrong, f"{len(wrong)} of {len(jobs)} differ, first {wrong[0]}"
    for (case, _), answer in zip(jobs, answers, strict=True):
        assert report(answer)["video_tokens"] == case.video_tokens
        assert report(answer)["cold"] is report(answer)["fallback"] is None, report(answer)
    assert any(meta(answer)["cached_tokens"] for answer in answers)
    assert used_tokens(server) == 0


def test_a_draft_that_sees_everything_is_always_accepted_and_a_pruned_one_often(
    server: Server, cases: list[specvlm.Case]
) -> None:
    server.flush_cache()
    jobs = [(case, {"retention": 1.0}) for case in cases * 2]
    for (case, _), answer in zip(jobs, ask_all(server, jobs, at_once=4), strict=True):
        assert tuple(answer.output_ids) == case.expected
        histogram = meta(answer)["spec_correct_drafts_histogram"]
        # The last round may end at the token limit or an end token; no other rejects anything.
        assert sum(histogram[:-1]) <= 1, (case.messages, histogram)
    videos = [case for case in cases if case.video_tokens]
    rates = [meta(ask(server, case, retention=0.05))["spec_accept_rate"] for case in videos]
    assert 0 < sum(rates) / len(rates) < 1


def test_a_cached_prompt_is_drafted_as_a_cold_one(
    server: Server, cases: list[specvlm.Case]
) -> None:
    server.flush_cache()
    cold, hit = (ask(server, cases[1], retention=0.25) for _ in range(2))
    assert meta(hit)["cached_tokens"] > 0
    assert tuple(cold.output_ids) == tuple(hit.output_ids) == cases[1].expected
    assert meta(hit)["spec_verify_ct"] == meta(cold)["spec_verify_ct"]


def test_equal_prompts_at_once_share_a_prefix_and_are_all_accepted(
    server: Server, cases: list[specvlm.Case]
) -> None:
    """SGLang lets all but one of them read the slots of another after their prefill."""
    server.flush_cache()
    for answer in ask_all(server, [(cases[2], {"retention": 1.0})] * 8, at_once=8):
        assert tuple(answer.output_ids) == cases[2].expected
        assert sum(meta(answer)["spec_correct_drafts_histogram"][:-1]) <= 1


def test_a_preempted_request_goes_on_with_its_own_tokens(
    server: Server, clip_paths: list[Path]
) -> None:
    prompt = chat_prompt("What happens?", video=True)
    chunks = specvlm.stream_through_a_preemption(server, prompt, clip_paths[0], retention=0.25)
    assert chunks[-1]["meta_info"]["num_retractions"] == 1
    whole = server.generate(
        prompt,
        max_new_tokens=200,
        ignore_eos=True,
        request={"video_data": [str(clip_paths[0])]},
    )
    assert chunks[-1]["output_ids"] == whole["output_ids"]
    assert used_tokens(server) == 0


def test_a_request_that_has_no_draft_says_why_beside_others_that_have_one(
    server: Server, cases: list[specvlm.Case]
) -> None:
    video = cases[1]
    jobs: list[tuple[specvlm.Case, dict[str, Any]]] = [
        (video, {"retention": 0.25, "policy": "scope+merge" if number % 2 else "specvlm"})
        for number in range(6)
    ]
    for (case, chosen), answer in zip(jobs, ask_all(server, jobs, at_once=6), strict=True):
        assert tuple(answer.output_ids) == case.expected
        expected = NOTHING_TO_MIX if "+merge" in chosen["policy"] else None
        assert report(answer)["cold"] == expected


def test_aborts_lose_no_slot_and_change_no_other_answer(
    server: Server, cases: list[specvlm.Case]
) -> None:
    chance = random.Random(1)
    never = 10**6
    aborts = [chance.choice([never, 1, 4]) for _ in range(48)]

    def one(number: int) -> None:
        body: Any = {
            "model": "m",
            "messages": list(cases[number % len(cases)].messages),
            "max_tokens": 40,
            "temperature": 0.8 if number % 3 else 0.0,
            "ignore_eos": True,
            "stream": True,
        }
        with requests.post(
            f"{server.url}/v1/chat/completions", json=body, stream=True, timeout=300
        ) as response:
            for chunks, _ in enumerate(response.iter_lines()):
                if chunks >= aborts[number]:
                    return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(len(aborts))))
    assert used_tokens(server) == 0
    assert tuple(ask(server, cases[1]).output_ids) == cases[1].expected


def test_detail_grammar_stops_and_several_answers_work(
    server: Server, cases: list[specvlm.Case]
) -> None:
    case = cases[1]
    plain = ask(server, case)
    detailed = ask(server, case, custom_params={"specvlm": {"retention": 0.25, "detail": True}})
    assert tuple(detailed.output_ids) == case.expected
    assert len(report(detailed)["detail"]["origins"]) == len(case.expected)
    several = ask(server, case, n=3, temperature=0.0)
    assert [choice["message"]["content"] for choice in several.raw["choices"]] == [plain.text] * 3
    stop = plain.text[4:7]
    assert ask(server, case, stop=[stop]).text == plain.text[: plain.text.index(stop)]
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    constrained = ask(
        server,
        case,
        max_tokens=40,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": schema, "strict": True},
        },
    )
    assert constrained.text.lstrip().startswith("{")


@pytest.mark.slow
def test_it_takes_the_memory_of_plain_serving(
    serve: Any, server: Server, vl_target: Path, cases: list[specvlm.Case]
) -> None:
    plain = serve(vl_target, *FLOAT32, *CHUNKS)
    assert tuple(ask(plain, cases[1]).output_ids) == cases[1].expected
    mine, theirs = (
        one.server_info()["internal_states"][0]["memory_usage"] for one in (server, plain)
    )
    for part in ("token_capacity", "kvcache"):
        assert mine[part] == theirs[part], (mine, theirs)
    for loaded in ("Load weight begin", "KV Cache is allocated"):
        assert server.log_text().count(loaded) == plain.log_text().count(loaded) == 1
    found = state(server)
    assert (found["draft"], found["draft_kv_tokens"]) == ("self", 0)
    assert found["phases"]["draft_prefill"]["calls"] == 0
    assert found["phases"]["draft_extend"]["calls"] == 0


OTHERS = {
    "tree": TREE,
    "half the layers": (*CHAIN, "--specvlm-self-layers", "2"),
    "pages": (*CHAIN, "--page-size", "16"),
    "one step": ("--speculative-num-steps", "1"),
    "two ranks": (*CHAIN, "--tp-size", "2"),
    "steps that pay": (*CHAIN, "--speculative-adaptive"),
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", OTHERS)
def test_other_shapes_and_ranks_give_the_targets_own_tokens(
    serve: Any, vl_target: Path, cases: list[specvlm.Case], shape: str
) -> None:
    server = serve(vl_target, *FLOAT32, *CHUNKS, *specvlm_arguments(None), *OTHERS[shape])
    jobs = [(case, {"retention": share}) for share, case in product((0.25, 1.0), cases)]
    for at_once in (1, 8):
        answers = ask_all(server, jobs, at_once=at_once)
        for (case, chosen), answer in zip(jobs, answers, strict=True):
            assert tuple(answer.output_ids) == case.expected, (chosen, case.messages)
            cold = report(answer)["cold"]
            # Whether a draft of these tiny models pays is for the machine to say.
            unpaid = shape == "steps that pay" and str(cold).startswith("would not pay")
            assert cold is None or unpaid, cold
            histogram = meta(answer)["spec_correct_drafts_histogram"]
            if chosen["retention"] < 1 or shape in ("steps that pay", "half the layers"):
                continue
            # A tree's nodes are those that the draft believes most, not the deepest.
            missed = histogram[:1] if shape == "tree" else histogram[:-1]
            assert sum(missed) <= 1, (case.messages, histogram)
    assert used_tokens(server) == 0
    assert (state(server)["pace"] is not None) == (shape == "steps that pay")


@pytest.mark.slow
def test_forced_retraction_loses_no_request(
    serve: Any, vl_target: Path, cases: list[specvlm.Case]
) -> None:
    tight = ("--max-total-tokens", "420", "--schedule-conservativeness", "0.1")
    server = serve(vl_target, *LAUNCH, *tight, "--disable-radix-cache")
    answers = ask_all(server, [(case, {}) for case in cases * 4], at_once=8)
    for case, answer in zip(cases * 4, answers, strict=True):
        assert tuple(answer.output_ids) == case.expected
    assert used_tokens(server) == 0


@pytest.mark.slow
def test_an_audit_finds_every_answer_right(
    serve: Any, vl_target: Path, cases: list[specvlm.Case]
) -> None:
    server = serve(vl_target, *LAUNCH, "--specvlm-audit", "1")
    answers = ask_all(server, [(case, {"retention": 0.25}) for case in cases], at_once=4)
    assert [tuple(answer.output_ids) for answer in answers] == [case.expected for case in cases]
    found = specvlm.settled(server)
    assert found["mismatches"] == 0
    assert found["audited"] >= len(cases)
