"""SPECVLM in a real server: the target's own tokens, whatever the draft was shown."""

from __future__ import annotations

import random
import re
import threading
from itertools import product
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from specvlm_sglang.draft.kv_cache import GROWTH
from specvlm_sglang.pruning.registry import shipped_policies
from tests.serving import specvlm
from tests.serving.specvlm import CHAIN, TREE, ask, ask_all, launch, meta, report, state
from tests.support.messages import user

LATER = (
    "attention-spread",
    "attention-change-spread",
    "scope",
    "floc",
    "change",
    "evs",
    "specvlm-spread",
    "attention-change-spread+merge",
)
"""Asked about two prompts only: elsewhere what they keep is compared with the reference."""
POLICIES = tuple(name for name in shipped_policies() if name not in LATER)

pytestmark = pytest.mark.serving

RETENTIONS = (0.05, 0.1, 0.5, 1.0)
SHAPES = {
    "chain": CHAIN,
    # Chunks smaller than a video: its tokens and its query rows fall into different passes.
    "tree, chunked": (*TREE, "--chunked-prefill-size", "16"),
}


@pytest.fixture(scope="module")
def cases(vl_target: Path, clip_paths: list[Path], image_paths: list[Path]) -> list[specvlm.Case]:
    return specvlm.cases(vl_target, clip_paths, image_paths)


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_are_the_targets_own_over_retentions_policies_cache_states_and_concurrency(
    serve: Any, vl_target: Path, vl_draft: Path, cases: list[specvlm.Case], shape: str
) -> None:
    server = serve(vl_target, *launch(vl_draft, *SHAPES[shape]))
    options = [{"retention": retention, "policy": "specvlm"} for retention in RETENTIONS]
    options += [
        {"retention": 0.5 if number % 2 else 0.1, "policy": policy}
        for number, policy in enumerate((*POLICIES, specvlm.OWN_POLICY))
        if policy != "specvlm"
    ]
    jobs = [(case, chosen) for chosen in options for case in cases]
    # The extreme retentions of the other policies on a video, two of them, and a second turn.
    jobs += [
        (cases[number], {"retention": retention, "policy": policy})
        for policy, retention in product(POLICIES, (0.05, 1.0))
        if policy != "specvlm"
        for number in (1, 3, 4)
    ]
    jobs += [(cases[n], {"retention": 0.1, "policy": policy}) for policy in LATER for n in (1, 3)]
    jobs.append((cases[1], {"retention": 1.0, "draft_video_tokens": 5, "policy": "scope+merge"}))
    random.Random(0).shuffle(jobs)
    if shape != "chain":
        # Chunks fall elsewhere for each prompt, whatever is kept of it.
        jobs = jobs[: len(jobs) // 2]
    half = len(jobs) // 2
    server.flush_cache()
    answers = ask_all(server, jobs[:half], at_once=1)
    answers += ask_all(server, jobs[half:], at_once=8)
    wrong = [
        (chosen, case.messages[-1]["content"])
        for (case, chosen), answer in zip(jobs, answers, strict=True)
        if tuple(answer.output_ids) != case.expected
    ]
    assert not wrong, f"{len(wrong)} of {len(jobs)} differ, first {wrong[0]}"
    for (case, chosen), answer in zip(jobs, answers, strict=True):
        assert report(answer)["video_tokens"] == case.video_tokens
        assert report(answer)["cold"] is None, report(answer)
        assert report(answer)["fallback"] is None
        whole = ("none", "frames", "specvlm-grid", specvlm.OWN_POLICY)
        if case.video_tokens and chosen["policy"] not in whole:
            budget = max(1, int(case.video_tokens * chosen["retention"] + 1e-6))
            budget = min(budget, chosen.get("draft_video_tokens", budget))
            # Grid policies give each video a budget of its own.
            assert abs(report(answer)["kept_video_tokens"] - budget) <= 1
    assert len(jobs) >= 90, "two shapes are to make hundreds of generations"
    assert state(server)["draft_kv_tokens_in_use"] == 0


def test_a_cached_prompt_is_answered_like_a_cold_one_and_scored_again(
    serve: Any, vl_target: Path, vl_draft: Path, cases: list[specvlm.Case]
) -> None:
    server = serve(vl_target, *launch(vl_draft, *CHAIN))
    server.flush_cache()
    case = cases[1]
    cold, hit = (ask(server, case, retention=0.25) for _ in range(2))
    assert meta(hit)["cached_tokens"] > 0
    assert tuple(cold.output_ids) == tuple(hit.output_ids) == case.expected
    assert report(hit)["scoring_seconds"] > 0
    # The same scores keep the same tokens, so the same drafts are accepted.
    assert meta(hit)["spec_verify_ct"] == meta(cold)["spec_verify_ct"]


def test_streaming_sends_the_same_text(
    serve: Any, vl_target: Path, vl_draft: Path, cases: list[specvlm.Case]
) -> None:
    server = serve(vl_target, *launch(vl_draft, *CHAIN))
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    stream = client.chat.completions.create(
        model="m",
        messages=list(cases[1].messages),  # type: ignore[arg-type]
        max_tokens=specvlm.NEW_TOKENS,
        temperature=0,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(pieces) > 2
    assert "".join(pieces) == ask(server, cases[1]).text


def test_several_answers_stop_strings_logprobs_and_json_schema_work(
    serve: Any, vl_target: Path, vl_draft: Path, cases: list[specvlm.Case]
) -> None:
    server = serve(vl_target, *launch(vl_draft, *CHAIN))
    case = cases[1]
    plain = ask(server, case)
    several = ask(server, case, n=3, temperature=0.0)
    assert [choice["message"]["content"] for choice in several.raw["choices"]] == [plain.text] * 3
    stop = plain.text[4:7]
    assert ask(server, case, stop=[stop]).text == plain.text[: plain.text.index(stop)]
    logprobs = ask(server, case, logprobs=True, top_logprobs=2).raw["choices"][0]["logprobs"]
    for entry in logprobs["content"]:
        assert entry["logprob"] == pytest.approx(entry["top_logprobs"][0]["logprob"], abs=1e-4)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    constrained = server.chat(
        case.messages,
        max_tokens=40,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": schema, "strict": True},
        },
    )
    assert constrained.text.lstrip().startswith("{")


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"retention": 0}, "retention=0"),
        ({"retention": "much"}, "retention='much'"),
        ({"policy": "best"}, "policy='best'"),
        ({"keep": 3}, "keep"),
        ("0.1", "must be an object"),
    ],
)
def test_bad_request_options_are_a_400_that_names_the_value(
    serve: Any,
    vl_target: Path,
    vl_draft: Path,
    cases: list[specvlm.Case],
    chosen: Any,
    named: str,
) -> None:
    server = serve(vl_target, *launch(vl_draft, *CHAIN))
    with pytest.raises(openai.BadRequestError, match=named):
        server.chat(cases[1].messages, custom_params={"specvlm": chosen})
    assert tuple(ask(server, cases[1]).output_ids) == cases[1].expected


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/generate", {"text": "a", "return_hidden_states": True}),
        ("/generate", {"text": ["a", "b"], "return_hidden_states": [False, True]}),
        ("/v1/completions", {"prompt": "a", "return_hidden_states": True}),
        ("/v1/completions", {"prompt": "a", "return_hidden_states": "last"}),
        ("/v1/chat/completions", {"messages": user("a"), "return_hidden_states": "last"}),
    ],
)
def test_hidden_states_are_refused_by_their_field(
    serve: Any, vl_target: Path, vl_draft: Path, path: str, fields: dict[str, Any]
) -> None:
    server = serve(vl_target, *launch(vl_draft, *CHAIN))
    response = requests.post(f"{server.url}{path}", json={"model": "m", **fields}, timeout=300)
    assert response.status_code == 400, response.text
    wanted = r"return_hidden_states=(True|'last') does not work with SPECVLM"
    assert re.search(wanted, response.text), response.text


def test_the_draft_pool_holds_the_pruned_lengths_and_a_little_ahead_while_requests_run(
    serve: Any, vl_target: Path, vl_draft: Path, cases: list[specvlm.Case]
) -> None:
    server = serve(vl_target, *launch(vl_draft, *CHAIN))
    seen = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(state(server)["draft_kv_tokens_in_use"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        server.chat(
            cases[1].messages,
            max_tokens=200,
            ignore_eos=True,
            custom_params={"specvlm": {"retention": 0.25}},
        )
    finally:
        done.set()
        watcher.join()
    assert state(server)["draft_kv_tokens_in_use"] == 0
    busy = [slots for slots in seen if slots]
    assert busy, "the request ended before anybody looked"
    prompt = len(server.chat(cases[1].messages, max_tokens=1).prompt_ids)
    kept = max(1, int(cases[1].video_tokens * 0.25 + 1e-6))
    shortest = prompt - cases[1].video_tokens + kept + 1
    # Prefill, answer, SGLang's reserve of two rounds, and what a row takes ahead.
    assert shortest <= min(busy)
    assert max(busy) <= shortest + 200 + 2 * 2 * 4 + GROWTH


def test_the_draft_pool_is_empty_after_many_requests_with_random_aborts(
    serve: Any, vl_target: Path, vl_draft: Path, cases: list[specvlm.Case]
) -> None:
    server = serve(vl_target, *launch(vl_draft, *CHAIN))
    chance = random.Random(1)

    def one(number: int) -> None:
        case = cases[number % len(cases)]
        body = {
            "model": "m",
            "messages": list(case.messages),
            "max_tokens": 40,
            "temperature": 0.8 if number % 3 else 0.0,
            "ignore_eos": True,
            "stream": True,
        }
        with requests.post(
            f"{server.url}/v1/chat/completions", json=body, stream=True, timeout=300
        ) as response:
            for chunks, _ in enumerate(response.iter_lines()):
                if aborts[number] is not None and chunks >= aborts[number]:
                    return

    aborts = [chance.choice([None, 1, 4]) for _ in range(200)]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(200)))
    assert specvlm.eventually_idle(server)
    assert tuple(ask(server, cases[1]).output_ids) == cases[1].expected


@pytest.mark.slow
def test_a_full_draft_pool_and_forced_retraction_lose_no_request(
    serve: Any, vl_target: Path, vl_draft: Path, cases: list[specvlm.Case]
) -> None:
    server = serve(
        vl_target,
        *launch(
            vl_draft,
            *CHAIN,
            "--max-total-tokens",
            "420",
            "--specvlm-draft-kv-tokens",
            "160",
            "--schedule-conservativeness",
            "0.1",
            "--disable-radix-cache",
        ),
    )
    answers = ask_all(server, [(case, {}) for case in cases * 4], at_once=8)
    for case, answer in zip(cases * 4, answers, strict=True):
        assert tuple(answer.output_ids) == case.expected
    assert specvlm.eventually_idle(server)
    counts = state(server)
    assert counts["cold_at_prefill"] + counts["went_cold"] > 0, counts


def test_metrics_count_tokens_and_requests(
    serve: Any, vl_target: Path, vl_draft: Path, cases: list[specvlm.Case]
) -> None:
    server = serve(vl_target, *launch(vl_draft, *CHAIN))
    before = server.metrics()
    ask(server, cases[1], retention=0.5)
    after = server.metrics()
    kept = max(1, int(cases[1].video_tokens * 0.5 + 1e-6))
    gained = {name: after[name] - before.get(name, 0.0) for name in after}
    assert gained["specvlm_video_tokens_total"] == cases[1].video_tokens
    assert gained["specvlm_kept_video_tokens_total"] == kept
    assert gained["specvlm_requests_total"] == 1
    assert gained["specvlm_scoring_seconds_count"] == 1
    assert after["specvlm_draft_kv_tokens"] > 0
    assert after["specvlm_draft_kv_tokens_in_use"] == 0


def test_without_the_flag_of_the_audit_nothing_is_replayed(
    serve: Any, vl_target: Path, vl_draft: Path, cases: list[specvlm.Case]
) -> None:
    server = serve(vl_target, *launch(vl_draft, *CHAIN))
    assert tuple(ask(server, cases[1]).output_ids) == cases[1].expected
    assert state(server)["audit"] is None
    assert state(server)["audited"] == 0
    assert server.metrics()["specvlm_audited_total"] == 0


@pytest.mark.slow
def test_help_shows_the_flags(tmp_path: Path) -> None:
    import subprocess
    import sys

    shown = subprocess.run(
        [sys.executable, "-m", "sglang.launch_server", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stdout
    assert "--specvlm-retention" in shown
    assert "--specvlm-exact-vision" in shown
