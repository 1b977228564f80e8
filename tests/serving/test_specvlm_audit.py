"""``--specvlm-audit`` on a real server: what it finds, and that nobody has to wait for it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.serving import specvlm
from tests.serving.specvlm import (
    CHAIN,
    ask,
    ask_all,
    audit,
    launch,
    meta,
    settled,
    state,
    wait_for_audit,
)
from tests.support import probe
from tests.support.server import Server

pytestmark = pytest.mark.serving

# Chunks and pages that cut prompts apart, in the replays too.
SHAPE = (*CHAIN, "--chunked-prefill-size", "16", "--page-size", "4")
LONG = 400
"""Tokens of an answer whose replay lasts seconds."""


@pytest.fixture(scope="module")
def cases(vl_target: Path, clip_paths: list[Path], image_paths: list[Path]) -> list[specvlm.Case]:
    return specvlm.cases(vl_target, clip_paths, image_paths)


@pytest.fixture(scope="module")
def audited(
    serve: Any, vl_target: Path, vl_draft: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Server, dict[str, str]]:
    environment = probe.install(tmp_path_factory.mktemp("audited"))
    arguments = launch(vl_draft, *SHAPE, "--specvlm-audit", "1")
    return serve(vl_target, *arguments, **environment), environment


@pytest.fixture
def server(audited: tuple[Server, dict[str, str]]) -> Server:
    settled(audited[0])
    return audited[0]


def long_replay(server: Server, case: specvlm.Case) -> str:
    """Ask for a long answer and return its request's id as soon as its replay has begun."""
    answer = server.chat(case.messages, max_tokens=LONG, ignore_eos=True, return_meta_info=True)
    asked = str(meta(answer)["id"])
    wait_for_audit(server, lambda found: found["replaying"] == asked)
    return asked


def gained(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    names = ("selected", "audited", "mismatches", "interruptions")
    counts = {name: after[name] - before[name] for name in names}
    skipped = {
        reason: after["skipped"].get(reason, 0) - before["skipped"].get(reason, 0)
        for reason in {**before["skipped"], **after["skipped"]}
    }
    return {name: count for name, count in {**counts, **skipped}.items() if count}


def test_answers_to_texts_images_and_videos_are_all_replayed_and_are_the_targets_own(
    server: Server, cases: list[specvlm.Case]
) -> None:
    before, metrics_before = audit(server), server.metrics()
    text = ask(server, cases[1]).text
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    strict = {"name": "n", "schema": schema, "strict": True}
    variants: list[dict[str, Any]] = [
        {"stop": [text[4:7]]},
        {"ignore_eos": True},
        {"logit_bias": {"65": 3.0}},
        {"n": 2, "temperature": 0.0},
        {"response_format": {"type": "json_schema", "json_schema": strict}},
    ]
    jobs: list[tuple[specvlm.Case, dict[str, Any]]] = [(case, {}) for case in cases]
    jobs += [(cases[1], chosen) for chosen in variants]
    for case, chosen in jobs:
        settled(server)
        answer = ask(server, case, **chosen)
        if not chosen:
            assert tuple(answer.output_ids) == case.expected
    server.chat(cases[1].messages, max_tokens=1)
    after, metrics = settled(server), server.metrics()
    answered = 1 + len(jobs) + 1 + 1
    changes = gained(before, after)
    # Two answers: SGLang first computes their prompt, as a request without an answer.
    changes.pop("interruptions", None)
    assert changes == {"selected": answered + 1, "audited": answered, "empty answer": 1}
    assert state(server)["audited"] == after["audited"] == metrics["specvlm_audited_total"]
    assert metrics["specvlm_audited_total"] - metrics_before["specvlm_audited_total"] == answered
    assert metrics["specvlm_audit_mismatches_total"] == after["mismatches"]


def test_what_has_no_one_right_answer_is_skipped_with_the_reason(
    server: Server, cases: list[specvlm.Case]
) -> None:
    before = audit(server)
    ask(server, cases[1], temperature=0.8)
    body = {
        "model": "m",
        "messages": list(cases[1].messages),
        "max_tokens": LONG,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
    }
    with requests.post(
        f"{server.url}/v1/chat/completions", json=body, stream=True, timeout=300
    ) as response:
        next(response.iter_lines())
    after = wait_for_audit(server, lambda found: found["selected"] == before["selected"] + 2)
    assert gained(before, after) == {"selected": 2, "sampled": 1, "aborted": 1}


def test_a_wrong_token_is_found_with_its_position_both_tokens_and_their_logits(
    audited: tuple[Server, dict[str, str]], server: Server, cases: list[specvlm.Case]
) -> None:
    before, metrics_before = audit(server), server.metrics()
    probe.corrupt_a_token(audited[1])
    answer = ask(server, cases[1], ignore_eos=True)
    ids = answer.output_ids
    position = next(index for index, token in enumerate(cases[1].expected) if ids[index] != token)
    after = settled(server)
    assert gained(before, after) == {"selected": 1, "audited": 1, "mismatches": 1}
    metrics = server.metrics()
    assert metrics["specvlm_audit_mismatches_total"] == after["mismatches"]
    assert after["mismatches"] == metrics_before["specvlm_audit_mismatches_total"] + 1
    found = after["last_mismatches"][-1]
    assert found["id"] == meta(answer)["id"]
    assert (found["position"], found["token"]) == (position, ids[position])
    assert found["replayed_token"] == cases[1].expected[position]
    assert found["gap"] == pytest.approx(found["replayed_logit"] - found["logit"])
    # No tie: the token that was let through is not close to the target's choice.
    assert found["gap"] > 0.01
    assert (found["length"], found["replayed_length"]) == (len(ids), position + 1)
    assert found["prompt_tokens"] == len(answer.prompt_ids)
    assert "an answer is not what plain decoding says" in server.log_text()


def test_requests_that_arrive_during_a_replay_are_answered_as_ever_and_it_is_begun_again(
    server: Server, cases: list[specvlm.Case]
) -> None:
    before = audit(server)
    long_replay(server, cases[1])
    jobs = [(case, {}) for case in cases[:6]]
    answers = ask_all(server, jobs, at_once=3)
    for (case, _), answer in zip(jobs, answers, strict=True):
        assert tuple(answer.output_ids) == case.expected
    changes = gained(before, settled(server))
    assert changes.pop("interruptions") >= 1
    assert changes == {"selected": 7, "audited": 7}
    assert state(server)["draft_kv_tokens_in_use"] == 0


@pytest.mark.slow
def test_a_replay_that_is_interrupted_too_often_is_given_up(
    server: Server, cases: list[specvlm.Case]
) -> None:
    before = audit(server)
    asked = long_replay(server, cases[1])
    for _ in range(4):
        wait_for_audit(server, lambda found: found["replaying"] == asked)
        assert tuple(ask(server, cases[0]).output_ids) == cases[0].expected
    changes = gained(before, settled(server))
    assert changes == {
        "selected": 5,
        "audited": 4,
        "interruptions": 4,
        "interrupted too often": 1,
    }


def test_more_than_eight_finished_requests_do_not_wait(
    server: Server, cases: list[specvlm.Case]
) -> None:
    before = audit(server)
    ask_all(server, [(cases[0], {"max_tokens": 2 + number}) for number in range(12)], at_once=12)
    changes = gained(before, settled(server))
    changes.pop("interruptions", None)
    assert changes["selected"] == 12
    assert changes["audited"] + changes.get("queue full", 0) == 12
    assert changes["audited"] >= 8


def test_a_health_check_is_answered_by_a_replay_without_stopping_it(
    server: Server, cases: list[specvlm.Case]
) -> None:
    before = audit(server)
    asked = long_replay(server, cases[1])
    assert server.is_healthy()
    assert requests.get(f"{server.url}/v1/loads", timeout=60).ok
    assert audit(server)["replaying"] == asked
    assert gained(before, settled(server)) == {"selected": 1, "audited": 1}


def test_the_cache_is_flushed_at_once_during_a_replay(
    server: Server, cases: list[specvlm.Case]
) -> None:
    before = audit(server)
    long_replay(server, cases[1])
    # Without a timeout SGLang refuses to flush while anything runs.
    assert requests.post(f"{server.url}/flush_cache", timeout=60).ok
    changes = gained(before, settled(server))
    assert changes == {"selected": 1, "audited": 1, "interruptions": 1}
    assert tuple(ask(server, cases[1]).output_ids) == cases[1].expected


@pytest.mark.parametrize("mode", ["in_place", pytest.param("retract", marks=pytest.mark.slow)])
def test_a_paused_server_replays_nothing_and_goes_on_afterwards(
    server: Server, cases: list[specvlm.Case], mode: str
) -> None:
    before = audit(server)
    long_replay(server, cases[1])
    assert requests.post(f"{server.url}/pause_generation", json={"mode": mode}, timeout=60).ok
    paused = audit(server)
    assert (paused["replaying"], paused["waiting"]) == (None, 1)
    assert requests.post(f"{server.url}/continue_generation", json={}, timeout=60).ok
    changes = gained(before, settled(server))
    assert changes == {"selected": 1, "audited": 1, "interruptions": 1}


def test_aborting_all_requests_does_not_touch_a_replay(
    server: Server, cases: list[specvlm.Case]
) -> None:
    before = audit(server)
    asked = long_replay(server, cases[1])
    abort = requests.post(f"{server.url}/abort_request", json={"abort_all": True}, timeout=60)
    assert abort.ok
    assert audit(server)["replaying"] == asked
    assert gained(before, settled(server)) == {"selected": 1, "audited": 1}


def test_answers_of_weights_that_were_replaced_are_not_replayed(
    server: Server, vl_target: Path, cases: list[specvlm.Case]
) -> None:
    before = audit(server)
    long_replay(server, cases[1])
    update = requests.post(
        f"{server.url}/update_weights_from_disk", json={"model_path": str(vl_target)}, timeout=300
    )
    assert update.ok, update.text
    assert gained(before, settled(server)) == {"selected": 1, "weights changed": 1}
    assert tuple(ask(server, cases[1]).output_ids) == cases[1].expected


def test_a_server_with_nothing_left_to_replay_sleeps(
    server: Server, cases: list[specvlm.Case]
) -> None:
    ask(server, cases[0])
    settled(server)

    def used() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in server.processes())

    # While replays run, a core is busy; a scheduler that polls keeps it so.
    time.sleep(1)
    before = used()
    time.sleep(3)
    assert used() - before < 1.5, [process.cmdline() for process in psutil.process_iter()]
