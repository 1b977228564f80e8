"""``--speculative-adaptive``: the number of draft steps changes, no token does."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.serving import specvlm
from tests.serving.specvlm import ask, ask_all, launch, meta, report, state

pytestmark = pytest.mark.serving

STEPS = ("--speculative-num-steps", "5", "--speculative-adaptive")
AT_RANDOM = {"SPECVLM_PACE": "random:7"}


@pytest.fixture(scope="module")
def cases(vl_target: Path, clip_paths: list[Path], image_paths: list[Path]) -> list[specvlm.Case]:
    return specvlm.cases(vl_target, clip_paths, image_paths)


def test_a_draft_that_rested_knows_what_it_missed(
    serve: Any, vl_target: Path, cases: list[specvlm.Case]
) -> None:
    """With the target's own weights and all tokens every draft is right, after any rest.

    Steps change at random in every round: 0 (the draft rests), 1, 3 or 5.
    """
    server = serve(vl_target, *launch(vl_target, *STEPS), **AT_RANDOM)
    server.flush_cache()
    before = state(server)
    rounds = [0] * 6
    for case in cases:
        answer = ask(server, case, retention=1.0)
        assert tuple(answer.output_ids) == case.expected
        assert report(answer)["cold"] is None
        for accepted, times in enumerate(meta(answer)["spec_correct_drafts_histogram"]):
            rounds[accepted] += times
    # Half-accepted rounds are those that the end of an answer cut: SGLang counts what is left.
    partial = rounds[2] + rounds[4]
    assert partial <= len(cases), rounds
    assert min(rounds[0], rounds[1], rounds[3], rounds[5]) > 0, rounds
    assert state(server)["went_cold"] == before["went_cold"]
    assert state(server)["pace"]["reason"] == "at random"


@pytest.mark.slow
def test_switching_at_random_changes_no_token(
    serve: Any, vl_target: Path, vl_draft: Path, cases: list[specvlm.Case]
) -> None:
    chunks = ("--chunked-prefill-size", "16")
    server = serve(vl_target, *launch(vl_draft, *STEPS, *chunks), **AT_RANDOM)
    server.flush_cache()
    jobs = [
        (case, {"retention": retention, "policy": policy})
        for case in cases
        for retention, policy in ((0.1, "specvlm"), (0.5, "uniform"), (1.0, "none"))
    ] * 3
    random.Random(0).shuffle(jobs)
    half = len(jobs) // 2
    answers = ask_all(server, jobs[:half], at_once=1)
    answers += ask_all(server, jobs[half:], at_once=8)
    for (case, _), answer in zip(jobs, answers, strict=True):
        assert tuple(answer.output_ids) == case.expected
        assert report(answer)["cold"] is None
    assert state(server)["draft_kv_tokens_in_use"] == 0


@pytest.mark.slow
def test_switching_at_random_survives_retraction_full_pools_and_aborts(
    serve: Any, vl_target: Path, vl_draft: Path, cases: list[specvlm.Case]
) -> None:
    small = ("--max-total-tokens", "360", "--specvlm-draft-kv-tokens", "160")
    tight = ("--schedule-conservativeness", "0.1", "--disable-radix-cache")
    server = serve(vl_target, *launch(vl_draft, *STEPS, *small, *tight), **AT_RANDOM)
    chance, gone = random.Random(1), []

    def leave(number: int) -> None:
        """Read a few chunks of a long answer and hang up."""
        case = cases[number % len(cases)]
        body = {"model": "m", "messages": list(case.messages), "max_tokens": 40, "stream": True}
        with requests.post(
            f"{server.url}/v1/chat/completions",
            # Not ``ignore_eos``: SGLang lets in no more of such requests than it has room for.
            json={**body, "temperature": 0, "min_tokens": 40},
            stream=True,
            timeout=300,
        ) as response:
            for _ in zip(range(chance.choice([1, 2, 5])), response.iter_lines(), strict=False):
                pass
        gone.append(number)

    jobs = [(case, {"retention": share}) for case in cases * 3 for share in (0.1, 1.0)]
    with ThreadPoolExecutor(4) as leaving:
        for number in range(40):
            leaving.submit(leave, number)
        answers = ask_all(server, jobs, at_once=8)
    for (case, _), answer in zip(jobs, answers, strict=True):
        assert tuple(answer.output_ids) == case.expected
    assert len(gone) == 40
    retractions = sum(meta(answer)["num_retractions"] for answer in answers)
    assert retractions > 0, "the pool was never too small"
    assert specvlm.eventually_idle(server)


@pytest.mark.slow
def test_what_was_measured_is_shown(
    serve: Any, vl_target: Path, vl_draft: Path, cases: list[specvlm.Case]
) -> None:
    server = serve(vl_target, *launch(vl_draft, *STEPS))
    for _ in range(6):
        for case in cases:
            assert tuple(ask(server, case, retention=0.1).output_ids) == case.expected
    pace = state(server)["pace"]
    assert pace["steps"] in (0, 1, 3, 5)
    assert len(pace["round_seconds"]) >= 2, "more than one number of steps was tried"
    assert pace["acceptance_by_depth"] != [0.7] * 5, "nothing was learnt"
