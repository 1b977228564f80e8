"""LLaVA-OneVision in real servers: the class, SPECVLM on it, both position schemes.

Two servers. One has a narrower draft and chunks smaller than a frame; the other drafts with the
target's own weights and numbers the draft's tokens as the full prompt does. What a
server answers is compared with transformers, so it proves the model class and SPECVLM together.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import requests
import torch
from transformers import AutoConfig

from reference.selection import select_video_tokens
from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.tools.launch import specvlm_arguments
from tests.serving.specvlm import CHAIN, meta, report, settled, state
from tests.support import checkpoints, clips, llava_hf, probe
from tests.support.frames import write_lossless, write_pictures
from tests.support.llava_checkpoints import DRAFT_TOWER, llava_onevision
from tests.support.messages import user
from tests.support.server import ChatAnswer, Server

pytestmark = pytest.mark.serving

NEW_TOKENS = 24
# As in test_specvlm_internals: float32 on both sides.
SCORE_RTOL = 2e-4
LOGIT_ATOL = 2e-3
POLICIES = ("specvlm", "attention", "uniform", "random", "frames", "specvlm-grid")

Probed = tuple[Server, dict[str, str]]


@dataclass(frozen=True)
class Case:
    """A prompt, what transformers answers, and its video tokens without the videos' newlines."""

    messages: list[dict[str, Any]]
    prompt_ids: list[int]
    expected: list[int]
    video_tokens: int


@pytest.fixture(scope="module")
def target(checkpoint_dir: Path) -> Path:
    """Its vocabulary is padded: larger than the draft's, as with the published 7B and 0.5B."""
    shape = replace(checkpoints.TARGET, vocab_padding=200)
    return llava_onevision(checkpoint_dir / "llava-target", shape)


@pytest.fixture(scope="module")
def draft(checkpoint_dir: Path) -> Path:
    """Another width, depth and number of heads in the language model and in the tower."""
    return llava_onevision(checkpoint_dir / "llava-draft", checkpoints.DRAFT, DRAFT_TOWER, seed=1)


@pytest.fixture(scope="module")
def cases(
    target: Path,
    clip_paths: list[Path],
    image_paths: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("llava-media")
    shapes = {"wide": (44, 200), "tall": (200, 44), "small": (15, 19), "large": (260, 250)}
    shaped = {
        name: clips.write_image(folder / f"{name}.png", seed=7, height=height, width=width)
        for name, (height, width) in shapes.items()
    }
    long = clips.write_clip(folder / "long.mp4", seed=9, frames=40, fps=10, height=160, width=96)
    (first, second, third, _), (image, other, another, _) = clip_paths, image_paths
    red = {"role": "assistant", "content": "The red circle moves."}
    prompts = {
        "text": user("Which colours are there?"),
        "string": [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": "Is it large? Is it dark?"},
        ],
        "image": user(image, "What is it?"),
        "inline image": user(other, "Describe the shapes.", inline=True),
        **{name: user(path, "What is it?") for name, path in shaped.items()},
        "two images": user(image, shaped["wide"], "Which one is larger?"),
        "images over turns": [*user(image, "Now?"), red, *user(another, "And now?")],
        "video": user(first, "What happens?"),
        "inline video": user(second, "What happens, and where does the circle go?", inline=True),
        "long video": user(long, "What happens?"),
        "two videos": user(first, second, "Compare them."),
        "video, image": user(first, image, "Is it there?"),
        "images, video": user(image, other, third, "Which one is in the video?"),
        "second turn": [*user(first, "What happens?"), red, *user("And then?")],
        "video in both turns": [*user(first, "What happens?"), red, *user(second, "And here?")],
    }
    video_token = llava_hf.load_model(target).config.video_token_id
    built = {}
    for name, messages in prompts.items():
        answer = llava_hf.greedy(target, messages, NEW_TOKENS)
        videos = str(messages).count("video_url'") // 2
        tokens = answer.prompt_ids.count(video_token) - videos
        built[name] = Case(messages, answer.prompt_ids, answer.output_ids, tokens)
    return built


def launch(serve: Any, target: Path, draft: Path, folder: Path, *more: str) -> Probed:
    environment = probe.install(folder)
    server = serve(
        target,
        "--dtype",
        "float32",
        *specvlm_arguments(draft),
        *more,
        **environment,
    )
    return server, environment


@pytest.fixture(scope="module")
def pair(serve: Any, target: Path, draft: Path, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    folder = tmp_path_factory.mktemp("pair")
    return launch(serve, target, draft, folder, *CHAIN, "--chunked-prefill-size", "13")


@pytest.fixture(scope="module")
def twins(serve: Any, target: Path, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    folder = tmp_path_factory.mktemp("twins")
    more = ("--specvlm-retention", "1.0", "--specvlm-positions", "original")
    return launch(serve, target, target, folder, *CHAIN, *more)


def ask(server: Server, case: Case, **options: Any) -> ChatAnswer:
    chosen = {key: options.pop(key) for key in ("retention", "policy") if key in options}
    if chosen:
        options["custom_params"] = {"specvlm": chosen}
    return server.chat(case.messages, max_tokens=NEW_TOKENS, return_meta_info=True, **options)


def ask_all(
    server: Server, jobs: Sequence[tuple[Case, dict[str, Any]]], at_once: int
) -> list[ChatAnswer]:
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda job: ask(server, job[0], **job[1]), jobs))


def assert_own_tokens(jobs: Sequence[tuple[Case, Any]], answers: Sequence[ChatAnswer]) -> None:
    wrong = [
        (options, case.messages[-1]["content"], answer.output_ids, case.expected)
        for (case, options), answer in zip(jobs, answers, strict=True)
        if answer.output_ids != case.expected
    ]
    assert not wrong, f"{len(wrong)} of {len(jobs)} differ, first (asked, got, wanted) {wrong[0]}"


def test_every_kind_of_prompt_is_answered_as_transformers_answers_cold_and_eight_at_once(
    pair: Probed, cases: dict[str, Case]
) -> None:
    server, _ = pair
    server.flush_cache()
    jobs: list[tuple[Case, dict[str, Any]]] = [(case, {}) for case in cases.values()]
    answers = ask_all(server, jobs, at_once=1)
    assert_own_tokens(jobs, answers)
    for case, answer in zip(cases.values(), answers, strict=True):
        assert len(answer.prompt_ids) == len(case.prompt_ids)
        assert report(answer)["video_tokens"] == case.video_tokens
        assert report(answer)["cold"] is None, report(answer)
    # Twice each: mostly once computed and once out of the radix cache.
    server.flush_cache()
    shuffled = jobs * 2
    random.Random(0).shuffle(shuffled)
    assert_own_tokens(shuffled, ask_all(server, shuffled, at_once=8))


def test_tokens_are_the_targets_own_over_retentions_policies_and_concurrency(
    pair: Probed, cases: dict[str, Case]
) -> None:
    server, _ = pair
    chosen = [{"retention": 1.0}, {"retention": 0.5, "policy": "none"}]
    chosen += [
        {"retention": retention, "policy": policy}
        for policy, retention in product(POLICIES, (0.05, 0.5))
    ]
    with_video = [case for case in cases.values() if case.video_tokens]
    jobs = [(case, options) for options in chosen for case in with_video]
    random.Random(1).shuffle(jobs)
    half = len(jobs) // 2
    server.flush_cache()
    answers = ask_all(server, jobs[:half], at_once=1) + ask_all(server, jobs[half:], at_once=8)
    assert_own_tokens(jobs, answers)
    for (case, options), answer in zip(jobs, answers, strict=True):
        assert report(answer)["cold"] is report(answer)["fallback"] is None, report(answer)
        kept = report(answer)["kept_video_tokens"]
        if options.get("policy") == "none":
            assert kept == case.video_tokens
        elif options.get("policy") not in ("frames", "specvlm-grid"):
            assert kept == max(1, int(case.video_tokens * options["retention"] + 1e-6))
    assert len(jobs) >= 100
    assert state(server)["draft_kv_tokens_in_use"] == 0


def test_a_prompt_out_of_the_cache_is_scored_again_and_drafted_the_same(
    pair: Probed, cases: dict[str, Case]
) -> None:
    server, _ = pair
    server.flush_cache()
    case = cases["two videos"]
    cold, hit = (ask(server, case, retention=0.25) for _ in range(2))
    assert meta(cold)["cached_tokens"] == 0
    # All but the question, which is what scores the video.
    assert meta(hit)["cached_tokens"] > case.video_tokens
    assert cold.output_ids == hit.output_ids == case.expected
    assert report(hit)["scoring_seconds"] > 0
    assert meta(hit)["spec_verify_ct"] == meta(cold)["spec_verify_ct"]


@torch.no_grad()
def embedded(directory: Path, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' ids and embeddings of the full prompt."""
    model = llava_hf.load_model(directory)
    inputs = llava_hf.model_inputs(directory, llava_hf.render(directory, case.messages))
    ids = inputs["input_ids"][0]
    embeddings = model.get_input_embeddings()(ids)
    if "pixel_values" in inputs:
        images = model.model.get_image_features(
            inputs["pixel_values"],
            inputs["image_sizes"],
            batch_num_images=inputs["batch_num_images"],
        )
        embeddings[ids == model.config.image_token_id] = torch.cat(list(images.pooler_output))
    if "pixel_values_videos" in inputs:
        videos = model.model.get_video_features(inputs["pixel_values_videos"])
        embeddings[ids == model.config.video_token_id] = videos.pooler_output.flatten(0, 1)
    return ids, embeddings


def video_places(directory: Path, ids: torch.Tensor, frames: int) -> tuple[torch.Tensor, int]:
    """Where the video tokens are, newlines left out, and where the text after them begins."""
    places = torch.nonzero(ids == llava_hf.load_model(directory).config.video_token_id)[:, 0]
    per_video = frames * 16 + 1
    assert len(places) % per_video == 0
    return places.view(-1, per_video)[:, :-1].flatten(), int(places[-1]) + 1


# Of two seconds each: four frames of 4 x 4 tokens.
OF_FOUR_FRAMES = ("video", "two videos", "images, video", "second turn", "video in both turns")


@torch.no_grad()
def test_scores_equal_the_attention_of_transformers_without_the_newline_rows(
    pair: Probed, target: Path, cases: dict[str, Case]
) -> None:
    server, environment = pair
    model = llava_hf.load_model(target)
    for name in OF_FOUR_FRAMES:
        ids, embeddings = embedded(target, cases[name])
        output = model.model.language_model(
            inputs_embeds=embeddings[None], output_attentions=True, use_cache=False
        )
        places, first_row = video_places(target, ids, frames=4)
        maps = [layer[0].mean(0)[first_row:].mean(0) for layer in output.attentions]
        expected = torch.stack(maps).mean(0)[places].numpy()
        for _ in range(2):  # computed, then out of the radix cache
            probe.clear(environment)
            ask(server, cases[name], retention=0.3)
            (scores,) = [r["scores"] for r in probe.records(environment) if r["kind"] == "scores"]
            np.testing.assert_allclose(scores.numpy(), expected, rtol=SCORE_RTOL)


@torch.no_grad()
def check_draft_logits(
    probed: Probed, directory: Path, case: Case, retention: float, *, original: bool
) -> int:
    """Compare every pass of the draft with transformers on the same kept tokens."""
    server, environment = probed
    probe.clear(environment)
    answer = ask(server, case, retention=retention)
    records = probe.records(environment)
    model = llava_hf.load_model(directory)
    ids, embeddings = embedded(directory, case)
    columns = torch.arange(len(ids))
    scores = [record["scores"].numpy() for record in records if record["kind"] == "scores"]
    if scores:
        places, _ = video_places(directory, ids, frames=4)
        kept = torch.from_numpy(select_video_tokens(scores[0], retention, SpecVLMConfig.top_p))
        dropped = places[~torch.isin(torch.arange(len(places)), kept)]
        columns = columns[~torch.isin(columns, dropped)]
    emitted = [answer.output_ids[0]]
    rounds = 0
    for record in records:
        if record["kind"] not in ("prefill", "extend"):
            continue
        if record["kind"] == "extend":
            emitted += record["tokens"].tolist()
            rounds += 1
        generated = torch.arange(len(ids), len(ids) + len(emitted))
        positions = torch.cat([columns, generated])
        if record["kind"] == "prefill":
            assert record["mrope_positions"] is None
            if original:
                assert torch.equal(record["positions"], positions)
            else:
                assert record["positions"] is None
        tokens = model.get_input_embeddings()(torch.tensor(emitted))
        hidden = model.model.language_model(
            inputs_embeds=torch.cat([embeddings[columns], tokens])[None],
            position_ids=(positions if original else torch.arange(len(positions)))[None],
            # Without it transformers takes a gap in the positions for the next sequence's start.
            attention_mask=torch.ones(1, len(positions), dtype=torch.int64),
            use_cache=False,
        ).last_hidden_state
        torch.testing.assert_close(
            record["logits"], model.lm_head(hidden[0, -1]), atol=LOGIT_ATOL, rtol=1e-3
        )
    assert emitted[: len(answer.output_ids)] == answer.output_ids
    return rounds


@pytest.mark.parametrize("retention", [0.1, 0.5, 1.0])
def test_draft_logits_equal_transformers_on_the_pruned_prompt_numbered_contiguously(
    pair: Probed, draft: Path, cases: dict[str, Case], retention: float
) -> None:
    rounds = [
        check_draft_logits(pair, draft, cases[name], retention, original=False)
        for name in ("text", "image", *OF_FOUR_FRAMES)
    ]
    assert sum(rounds) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("retention", [0.1, 0.5])
def test_draft_logits_equal_transformers_on_the_pruned_prompt_numbered_as_the_full_one(
    twins: Probed, target: Path, cases: dict[str, Case], retention: float
) -> None:
    rounds = [
        check_draft_logits(twins, target, cases[name], retention, original=True)
        for name in ("text", "image", *OF_FOUR_FRAMES)
    ]
    assert sum(rounds) >= 20


@pytest.mark.slow
def test_a_draft_with_the_targets_weights_that_sees_everything_is_always_accepted(
    twins: Probed, cases: dict[str, Case]
) -> None:
    server, _ = twins
    jobs: list[tuple[Case, dict[str, Any]]] = [(case, {}) for case in cases.values()] * 2
    answers = ask_all(server, jobs, at_once=4)
    assert_own_tokens(jobs, answers)
    for (case, _), answer in zip(jobs, answers, strict=True):
        histogram = meta(answer)["spec_correct_drafts_histogram"]
        # The last round may end at the token limit or an end token; no other rejects anything.
        assert sum(histogram[:-1]) <= 1, (case.messages, histogram)


@pytest.mark.slow
def test_a_pruned_draft_on_original_positions_changes_no_token(
    twins: Probed, cases: dict[str, Case]
) -> None:
    server, _ = twins
    jobs = [
        (case, {"retention": retention})
        for case, retention in product(cases.values(), (0.05, 0.3))
        if case.video_tokens
    ]
    answers = ask_all(server, jobs, at_once=8)
    assert_own_tokens(jobs, answers)
    rates = [meta(answer)["spec_accept_rate"] for answer in answers]
    assert 0 < sum(rates) / len(rates) < 1


def test_a_token_that_the_draft_does_not_have_is_drafted_on(
    pair: Probed, cases: dict[str, Case], target: Path
) -> None:
    last = AutoConfig.from_pretrained(target).text_config.vocab_size - 1
    answer = pair[0].chat(
        cases["video"].messages,
        logit_bias={str(last): 100.0},
        max_tokens=6,
        return_meta_info=True,
    )
    assert answer.output_ids == [last] * 6
    assert report(answer)["cold"] is None
    assert ask(pair[0], cases["video"]).output_ids == cases["video"].expected


def test_a_request_chooses_its_frames_and_wrong_settings_are_a_400(
    pair: Probed, cases: dict[str, Case]
) -> None:
    server, _ = pair
    case = cases["long video"]
    for frames in (2, 7):
        answer = ask(server, case, video_config={"nframes": frames})
        assert report(answer)["video_tokens"] == frames * 16
        assert len(case.prompt_ids) - len(answer.prompt_ids) == case.video_tokens - frames * 16
    single = deepcopy(case.messages)
    single[0]["content"][0]["video_url"]["max_frames"] = 3
    # Two videos of different lengths in one prompt.
    single[0]["content"] += cases["video"].messages[0]["content"]
    answer = ask(server, replace(case, messages=single))
    assert report(answer)["video_tokens"] == (3 + 4) * 16
    for settings, named in (({"fps": -1}, "fps=-1"), ({"max_pixels": 9}, "max_pixels")):
        with pytest.raises(openai.BadRequestError, match=named):
            ask(server, case, video_config=settings)
    assert ask(server, case).output_ids == case.expected


def test_a_list_of_frames_is_answered_as_the_file_of_the_same_pixels(
    pair: Probed, tmp_path: Path
) -> None:
    server, _ = pair
    frames = clips.draw(seed=5, frames=5, height=90, width=120)
    pictures = write_pictures(tmp_path / "frames", frames)
    file = write_lossless(tmp_path / "clip.mkv", frames, fps=4)
    question = {"type": "text", "text": "What happens?"}
    videos = (
        {"type": "video", "video": pictures, "fps": 4},
        {"type": "video", "video": str(file), "nframes": 5},
    )
    answers = [
        server.chat(
            [{"role": "user", "content": [video, question]}],
            max_tokens=NEW_TOKENS,
            return_meta_info=True,
            n=2,
        )
        for video in videos
    ]
    listed, filed = (report(answer)["videos"][0] for answer in answers)
    assert listed["container"] == "frames"
    assert listed["tokens"] == filed["tokens"] == 5 * 16 == report(answers[0])["video_tokens"]
    assert listed["times"] == filed["times"] == [0, 0.25, 0.5, 0.75, 1]
    texts = {choice["message"]["content"] for a in answers for choice in a.raw["choices"]}
    assert len(texts) == 1


def test_pictures_and_placeholders_that_do_not_match_are_a_400(
    pair: Probed, cases: dict[str, Case], image_paths: list[Path]
) -> None:
    server, _ = pair
    image = str(image_paths[0])
    for text, images in (("What is it?", [image]), ("<image><image>", [image])):
        with pytest.raises(requests.HTTPError, match=r"400 .* placeholders"):
            server.generate(text, request={"image_data": images})
    found = server.generate("<image>What is it?", request={"image_data": [image]})
    assert found["meta_info"]["prompt_tokens"] > 100
    assert ask(server, cases["image"]).output_ids == cases["image"].expected


@pytest.mark.slow
def test_a_target_that_drafts_for_itself_numbers_its_drafts_as_the_full_prompt_does(
    serve: Any, target: Path, cases: dict[str, Case]
) -> None:
    """Under an audit, whose replays decode with the same model and are numbered as always."""
    arguments = (*specvlm_arguments(None), *CHAIN, "--specvlm-audit", "1")
    server = serve(target, "--dtype", "float32", "--chunked-prefill-size", "13", *arguments)
    jobs = [
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
def test_two_ranks_answer_as_transformers_does(
    serve: Any, target: Path, draft: Path, cases: dict[str, Case]
) -> None:
    server = serve(target, "--dtype", "float32", "--tp-size", "2")
    assert server.server_info()["tp_size"] == 2
    jobs: list[tuple[Case, dict[str, Any]]] = [(case, {}) for case in cases.values()]
    for at_once in (1, 8):
        assert_own_tokens(jobs, ask_all(server, jobs, at_once=at_once))
