"""What every family must prove in real servers; `tests.support.families` has a line for each.

A family's first server does nearly everything; the others differ in what only a start can change.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch

from reference.selection import select_video_tokens
from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.frontend import encode_frames
from specvlm_sglang.host.frontend_video import IMAGE
from specvlm_sglang.models import family_of
from specvlm_sglang.models.configs import read_config
from specvlm_sglang.tools.bench.template import Template
from specvlm_sglang.tools.chat import data_url
from specvlm_sglang.tools.client import ask as ask_natively
from specvlm_sglang.tools.launch import specvlm_arguments
from specvlm_sglang.tools.visualize.run import ask_for_page
from tests.serving.specvlm import CHAIN, TREE, meta, report, settled, state
from tests.support import clips, probe
from tests.support.families import FAMILIES, Family
from tests.support.family_hf import Reference
from tests.support.messages import user
from tests.support.server import ChatAnswer, Server

pytestmark = pytest.mark.serving

NEW_TOKENS = 24
# As in test_specvlm_internals: float32 on both sides.
SCORE_RTOL = 2e-4
LOGIT_ATOL = 2e-3
FLOAT32 = ("--dtype", "float32")
# Chunks that cut frames and query rows apart.
CHUNKS = ("--chunked-prefill-size", "40")

Probed = tuple[Server, dict[str, str]]


@dataclass(frozen=True)
class Case:
    """A prompt as the server made it, and what transformers answers."""

    messages: list[dict[str, Any]]
    prompt_ids: list[int]
    inputs: dict[str, Any]
    expected: list[int]
    places: torch.Tensor
    """Of its video tokens."""

    @property
    def video_tokens(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class Pair:
    """A family's checkpoints, and transformers' models of them."""

    family: Family
    target: Path
    draft: Path
    target_reference: Reference
    draft_reference: Reference


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(family, id=family.name, marks=() if family.quick else pytest.mark.slow)
        for family in FAMILIES
    ],
)
def pair(request: pytest.FixtureRequest, checkpoint_dir: Path) -> Pair:
    family: Family = request.param
    target = family.target(checkpoint_dir / f"{family.name}-target")
    draft = family.draft(checkpoint_dir / f"{family.name}-draft")
    return Pair(family, target, draft, family.reference(target), family.reference(draft))


@pytest.fixture(scope="module")
def chain(serve: Any, pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    environment = probe.install(tmp_path_factory.mktemp("probe"))
    arguments = (*FLOAT32, *CHUNKS, *specvlm_arguments(pair.draft), *CHAIN)
    return serve(pair.target, *arguments, **environment), environment


@pytest.fixture(scope="module")
def cases(
    pair: Pair,
    chain: Probed,
    clip_paths: list[Path],
    image_paths: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Case]:
    """Each prompt's ids come from the server; the rest of a case from transformers."""
    folder = tmp_path_factory.mktemp("family-media")
    long = clips.write_clip(folder / "long.mp4", seed=9, frames=40, fps=10, height=160, width=96)
    (first, second, *_), (image, other, *_) = clip_paths, image_paths
    prompts = {
        "text": user("Which colours are there?"),
        "image": user(other, "What is it?"),
        "video": user(first, "What happens?"),
        "long video": user(long, "What happens, and where does the circle go then?"),
        "inline video": user(second, "What happens?", inline=True),
        "question first": user("Look at this:", first, "Now tell me."),
        "two videos": user(first, "and", second, "Compare them."),
        "video, image": user(first, image, "Is it there?"),
        "image, video": user(image, second, "Is it there?"),
        "second turn": [
            *user(first, "What happens?"),
            {"role": "assistant", "content": "The red circle moves."},
            *user("And then?"),
        ],
    }
    built, reference = {}, pair.target_reference
    for name, messages in prompts.items():
        served = chain[0].chat(messages, max_tokens=1).prompt_ids
        inputs = reference.inputs(messages, served)
        expected = reference.greedy(inputs, NEW_TOKENS)
        places = reference.video_places(served)
        built[name] = Case(messages, served, inputs, expected, places)
    return built


def with_video(cases: dict[str, Case]) -> list[Case]:
    return [case for case in cases.values() if case.video_tokens]


def ask(server: Server, case: Case, **options: Any) -> ChatAnswer:
    chosen = {key: options.pop(key) for key in ("retention", "policy") if key in options}
    if chosen:
        options["custom_params"] = {"specvlm": chosen}
    return server.chat(case.messages, max_tokens=NEW_TOKENS, return_meta_info=True, **options)


Job = tuple[Case, dict[str, Any]]


def ask_all(server: Server, jobs: Sequence[Job], at_once: int) -> list[ChatAnswer]:
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda job: ask(server, job[0], **job[1]), jobs))


def assert_own_tokens(jobs: Sequence[Job], answers: Sequence[ChatAnswer]) -> None:
    wrong = [
        (options, case.messages[-1]["content"], answer.output_ids, case.expected)
        for (case, options), answer in zip(jobs, answers, strict=True)
        if answer.output_ids != case.expected
    ]
    assert not wrong, f"{len(wrong)} of {len(jobs)} differ, first (asked, got, wanted) {wrong[0]}"


def test_prompts_are_those_of_transformers_and_say_different_things(
    pair: Pair, cases: dict[str, Case]
) -> None:
    for name, case in cases.items():
        if pair.target_reference.renders:
            assert case.inputs["input_ids"][0].tolist() == case.prompt_ids, name
    # A checkpoint that answers everything alike would prove nothing.
    assert len({tuple(case.expected) for case in cases.values()}) >= len(cases) - 1


def test_answers_are_those_of_transformers_cold_and_eight_at_once(
    chain: Probed, cases: dict[str, Case]
) -> None:
    server, _ = chain
    server.flush_cache()
    jobs: list[Job] = [(case, {}) for case in cases.values()]
    answers = ask_all(server, jobs, at_once=1)
    assert_own_tokens(jobs, answers)
    for case, answer in zip(cases.values(), answers, strict=True):
        assert report(answer)["video_tokens"] == case.video_tokens
        assert report(answer)["cold"] is report(answer)["fallback"] is None, report(answer)
    # Twice each: mostly once computed and once out of the radix cache.
    server.flush_cache()
    shuffled = jobs * 2
    random.Random(0).shuffle(shuffled)
    assert_own_tokens(shuffled, ask_all(server, shuffled, at_once=8))
    assert state(server)["draft_kv_tokens_in_use"] == 0


def test_tokens_are_the_targets_own_over_retentions_and_policies(
    chain: Probed, cases: dict[str, Case]
) -> None:
    server, _ = chain
    chosen: list[dict[str, Any]] = [{"retention": 1.0}, {"retention": 0.5, "policy": "none"}]
    chosen += [
        {"retention": retention, "policy": policy}
        for policy, retention in (
            ("specvlm", 0.1),
            ("specvlm", 0.5),
            ("uniform", 0.1),
            ("frames", 0.3),
            ("specvlm-grid", 0.3),
        )
    ]
    jobs = [(case, options) for options in chosen for case in with_video(cases)]
    random.Random(1).shuffle(jobs)
    server.flush_cache()
    answers = ask_all(server, jobs, at_once=8)
    assert_own_tokens(jobs, answers)
    for (case, options), answer in zip(jobs, answers, strict=True):
        assert report(answer)["cold"] is report(answer)["fallback"] is None, report(answer)
        kept = report(answer)["kept_video_tokens"]
        if options.get("policy") == "none":
            assert kept == case.video_tokens
        elif options.get("policy") in ("specvlm", "uniform"):
            assert kept == max(1, int(case.video_tokens * options["retention"] + 1e-6))
    assert state(server)["draft_kv_tokens_in_use"] == 0


def test_a_prompt_out_of_the_cache_is_scored_again_and_drafted_the_same(
    chain: Probed, cases: dict[str, Case]
) -> None:
    server, _ = chain
    server.flush_cache()
    case = cases["two videos"]
    cold, hit = (ask(server, case, retention=0.25) for _ in range(2))
    assert meta(cold)["cached_tokens"] == 0
    # All but the question, which is what scores the video.
    assert meta(hit)["cached_tokens"] > case.video_tokens
    assert cold.output_ids == hit.output_ids == case.expected
    assert report(hit)["scoring_seconds"] > 0
    assert meta(hit)["spec_verify_ct"] == meta(cold)["spec_verify_ct"]


def test_scores_equal_the_attention_of_transformers(
    chain: Probed, pair: Pair, cases: dict[str, Case]
) -> None:
    server, environment = chain
    for case in with_video(cases):
        first_row = int(case.places[-1]) + 1 + pair.family.ending
        expected = pair.target_reference.scores(case.inputs, case.places, first_row)
        for _ in range(2):  # computed, then out of the radix cache
            probe.clear(environment)
            ask(server, case, retention=0.3)
            records = probe.records(environment)
            (scores,) = [record["scores"] for record in records if record["kind"] == "scores"]
            np.testing.assert_allclose(scores.numpy(), expected.numpy(), rtol=SCORE_RTOL)


@pytest.mark.parametrize("retention", [0.1, 1.0])
def test_draft_logits_equal_transformers_on_the_pruned_prompt(
    chain: Probed, pair: Pair, cases: dict[str, Case], retention: float
) -> None:
    rounds = sum(
        check_draft_logits(chain, pair.draft_reference, case, retention) for case in cases.values()
    )
    assert rounds >= 3 * len(cases)


def check_draft_logits(
    probed: Probed,
    reference: Reference,
    case: Case,
    retention: float,
    *,
    original_positions: bool = False,
    policy: str = "specvlm",
) -> int:
    """Compare every pass of the draft with transformers on the same kept tokens."""
    server, environment = probed
    probe.clear(environment)
    answer = ask(server, case, retention=retention, policy=policy)
    records = probe.records(environment)
    given = reference.given(reference.inputs(case.messages, case.prompt_ids))
    columns = torch.arange(len(case.prompt_ids))
    scores = [record["scores"].numpy() for record in records if record["kind"] == "scores"]
    if policy == "uniform":
        scores = [np.zeros(case.video_tokens, np.float32)]
    if scores:
        kept = torch.from_numpy(
            select_video_tokens(scores[0], retention, SpecVLMConfig.top_p, policy)
        )
        is_kept = torch.isin(torch.arange(case.video_tokens), kept)
        columns = columns[~torch.isin(columns, case.places[~is_kept])]
    generated = [answer.output_ids[0]]
    rounds = 0
    for record in records:
        if record["kind"] not in ("prefill", "extend"):
            continue
        if record["kind"] == "extend":
            generated += record["tokens"].tolist()
            rounds += 1
        expected = reference.logits(
            given, columns, generated, original_positions=original_positions
        )
        size = record["logits"].shape[-1]
        torch.testing.assert_close(record["logits"], expected[:size], atol=LOGIT_ATOL, rtol=1e-3)
        if record["kind"] == "prefill" and given.positions is not None:
            found = record["mrope_positions"][:, :-1]
            assert torch.equal(found, given.positions[:, columns[record["first"] :]])
    assert generated[: len(answer.output_ids)] == answer.output_ids
    return rounds


def test_the_tools_take_the_family(chain: Probed, pair: Pair, clip_paths: list[Path]) -> None:
    server, _ = chain
    (clip, *_), question = clip_paths, "What happens?"
    page = ask_for_page(
        server.url, clip, question, retention=0.3, policy="specvlm", max_tokens=NEW_TOKENS
    )
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    asked = server.chat(user(clip, question), max_tokens=1, return_meta_info=True)
    assert math.prod(data["grid"]) == report(asked)["video_tokens"] == len(data["scores"])
    assert len(data["frames"]) == data["grid"][0]
    # What `specvlm bench` sends to /generate has the prompt that the chat interface makes.
    prompt = Template(str(pair.target)).render([(question, None)])
    assert ask_natively(server.url, prompt, [data_url(clip)], 4).prompt_tokens == len(
        asked.prompt_ids
    )


def test_frames_of_a_frontend_program_are_understood_or_refused_with_the_way_out(
    chain: Probed, pair: Pair, clip_paths: list[Path]
) -> None:
    body = {
        "text": f"{IMAGE}What happens?",
        "image_data": [encode_frames(str(clip_paths[0]), 8)],
        "sampling_params": {"max_new_tokens": 4, "temperature": 0},
    }
    answer = requests.post(f"{chain[0].url}/generate", json=body, timeout=300)
    if pair.family.name == "Qwen2-VL":
        assert answer.json()["meta_info"]["specvlm"]["video_tokens"] > 0
    else:
        assert answer.status_code == 400
        assert "send the file as a video_url" in answer.text


def test_a_further_question_is_drafted_on_the_kv_that_the_draft_has_of_the_video(
    chain: Probed, pair: Pair, cases: dict[str, Case]
) -> None:
    server, environment = chain
    server.flush_cache()
    before = state(server)["draft_prefix_hits"]
    for number, name in enumerate(("video", "second turn", "second turn")):
        check_draft_logits(chain, pair.draft_reference, cases[name], 0.3, policy="uniform")
        (prefill,) = [one for one in probe.records(environment) if one["kind"] == "prefill"]
        # What stands before the question, kept tokens and all, is there already.
        assert (prefill["first"] > 0) == (number > 0)
        assert state(server)["draft_prefix_hits"] - before == number
        assert state(server)["draft_kv_tokens_in_use"] == 0
        assert state(server)["draft_kv_tokens_cached"] > 0
    server.flush_cache()
    assert state(server)["draft_kv_tokens_cached"] == 0


def test_aborts_leave_no_draft_behind(chain: Probed, cases: dict[str, Case]) -> None:
    server, _ = chain

    def leave_early(number: int) -> None:
        case = with_video(cases)[number % len(with_video(cases))]
        body = {
            "model": "m",
            "messages": case.messages,
            "max_tokens": 200,
            "ignore_eos": True,
            "stream": True,
        }
        url = f"{server.url}/v1/chat/completions"
        with requests.post(url, json=body, stream=True, timeout=300) as response:
            for chunks, _ in enumerate(response.iter_lines()):
                if chunks >= number % 4:
                    return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(leave_early, range(16)))
    assert ask(server, cases["long video"]).output_ids == cases["long video"].expected
    server.flush_cache()  # waits until the server is idle
    assert state(server)["draft_kv_tokens_in_use"] == 0


# A start each: slow, whatever the family.


@pytest.mark.slow
def test_plain_answers_are_those_of_transformers(
    serve: Any, pair: Pair, cases: dict[str, Case]
) -> None:
    server = serve(pair.target, *FLOAT32)
    jobs: list[Job] = [(case, {}) for case in cases.values()]
    for at_once in (1, 8):
        assert_own_tokens(jobs, ask_all(server, jobs, at_once=at_once))


@pytest.fixture(scope="module")
def twins(serve: Any, pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    """Target and draft are one checkpoint, and the draft sees everything unless it is told."""
    environment = probe.install(tmp_path_factory.mktemp("twins"))
    more = ["--specvlm-retention", "1.0"]
    if not family_of(read_config(str(pair.target)).architectures).mrope:
        more += ["--specvlm-positions", "original"]
    arguments = (*FLOAT32, *CHUNKS, *specvlm_arguments(pair.target), *CHAIN, *more)
    return serve(pair.target, *arguments, **environment), environment


@pytest.mark.slow
def test_a_draft_with_the_targets_weights_that_sees_everything_is_always_accepted(
    twins: Probed, cases: dict[str, Case]
) -> None:
    jobs: list[Job] = [(case, {}) for case in cases.values()] * 2
    answers = ask_all(twins[0], jobs, at_once=4)
    assert_own_tokens(jobs, answers)
    for (case, _), answer in zip(jobs, answers, strict=True):
        histogram = meta(answer)["spec_correct_drafts_histogram"]
        # The last round may end at the token limit or an end token; no other rejects anything.
        assert sum(histogram[:-1]) <= 1, (case.messages, histogram)


@pytest.mark.slow
def test_draft_logits_equal_transformers_with_the_targets_weights_and_the_full_prompts_positions(
    twins: Probed, pair: Pair, cases: dict[str, Case]
) -> None:
    rounds = sum(
        check_draft_logits(twins, pair.target_reference, case, 0.3, original_positions=True)
        for case in cases.values()
    )
    assert rounds >= 2 * len(cases)


@pytest.mark.slow
def test_a_target_that_drafts_for_itself_gives_its_own_tokens_and_is_always_right_about_them(
    serve: Any, pair: Pair, cases: dict[str, Case]
) -> None:
    """Under an audit, whose replays number their tokens as the target does."""
    arguments = (*FLOAT32, *CHUNKS, *specvlm_arguments(None), *CHAIN, "--specvlm-audit", "1")
    server = serve(pair.target, *arguments)
    jobs: list[Job] = [
        (case, {"retention": retention}) for retention, case in product((0.1, 1.0), cases.values())
    ]
    answers = ask_all(server, jobs, at_once=4)
    assert_own_tokens(jobs, answers)
    for (case, options), answer in zip(jobs, answers, strict=True):
        assert report(answer)["cold"] is None
        histogram = meta(answer)["spec_correct_drafts_histogram"]
        if options["retention"] == 1.0 or not case.video_tokens:
            assert sum(histogram[:-1]) <= 1, (case.messages, histogram)
    assert settled(server)["mismatches"] == 0


@pytest.mark.slow
def test_trees_of_drafts_change_no_token(serve: Any, pair: Pair, cases: dict[str, Case]) -> None:
    server = serve(pair.target, *FLOAT32, *specvlm_arguments(pair.draft), *TREE)
    jobs: list[Job] = [
        (case, {"retention": retention}) for retention, case in product((0.1, 1.0), cases.values())
    ]
    for at_once in (1, 8):
        assert_own_tokens(jobs, ask_all(server, jobs, at_once=at_once))
    assert state(server)["draft_kv_tokens_in_use"] == 0


@pytest.mark.slow
def test_two_ranks_change_no_token(serve: Any, pair: Pair, cases: dict[str, Case]) -> None:
    draft = (*specvlm_arguments(pair.target), *CHAIN)
    server = serve(pair.target, *FLOAT32, *CHUNKS, *draft, "--tp-size", "2")
    assert server.server_info()["tp_size"] == 2
    jobs: list[Job] = [
        (case, {"retention": retention}) for retention, case in product((0.1, 1.0), cases.values())
    ]
    answers = ask_all(server, jobs, at_once=4)
    assert_own_tokens(jobs, answers)
    assert not [report(answer) for answer in answers if report(answer)["cold"]]
    assert state(server)["draft_kv_tokens_in_use"] == 0
