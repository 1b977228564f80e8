"""SGLang on the CPU platform answers as transformers does, token for token."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.serving import plain, specvlm
from tests.serving.plain import (
    EXACT,
    FEW_DECODED_BYTES,
    FLOAT32,
    Messages,
    ask,
    ask_all,
    assert_as_transformers,
    cached_tokens,
)
from tests.support import clips, hf
from tests.support.messages import user
from tests.support.server import Server

pytestmark = pytest.mark.serving

CHUNK = PAGE = 16
PAGED = (*EXACT, "--chunked-prefill-size", str(CHUNK), "--page-size", str(PAGE))

SETTINGS = [
    pytest.param(EXACT, id="defaults"),
    pytest.param(PAGED, id="small chunks, pages of 16", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def all_clips(clip_paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Those of the session, a longer and taller one, and one with an odd number of frames."""
    folder = tmp_path_factory.mktemp("more-clips")
    return [
        *clip_paths,
        clips.write_clip(folder / "long.mp4", seed=11, frames=60, fps=10, height=160, width=96),
        clips.write_clip(folder / "odd.mp4", seed=12, frames=7, fps=3, height=64, width=192),
    ]


@pytest.fixture(scope="module")
def prompts(all_clips: list[Path], image_paths: list[Path]) -> list[Messages]:
    return [
        *plain.text_prompts(),
        *plain.image_prompts(image_paths),
        *plain.video_prompts(all_clips, image_paths),
    ]


@pytest.mark.slow
def test_without_the_switch_a_video_is_answered_as_sglangs_own_conventions_say(
    serve: Any, vl_target: Path, prompts: list[Messages]
) -> None:
    server = serve(vl_target, *FLOAT32, **FEW_DECODED_BYTES)
    chosen = [prompts[0], prompts[8], *prompts[16:22], prompts[25]]
    assert_as_transformers(vl_target, chosen, ask_all(server, chosen, at_once=1), exact=False)


def test_the_switch_changes_what_is_expected_of_videos(
    vl_target: Path, prompts: list[Messages]
) -> None:
    videos = prompts[16:22]
    assert any(
        plain.expected(vl_target, messages) != plain.expected(vl_target, messages, exact=False)
        for messages in videos
    )


@pytest.mark.parametrize("options", SETTINGS)
def test_every_prompt_is_answered_as_transformers_answers_cold_cached_and_eight_at_once(
    serve: Any, vl_target: Path, prompts: list[Messages], options: tuple[str, ...]
) -> None:
    assert len(prompts) >= 30
    server = serve(vl_target, *options, **FEW_DECODED_BYTES)
    server.flush_cache()
    assert_as_transformers(vl_target, prompts, ask_all(server, prompts, at_once=1))
    # Each of every third comes twice: most of the time once cold and once out of the cache.
    server.flush_cache()
    shuffled = prompts[::3] * 2
    random.Random(0).shuffle(shuffled)
    answers = ask_all(server, shuffled, at_once=8)
    assert_as_transformers(vl_target, shuffled, answers)


@pytest.mark.parametrize("options", SETTINGS)
def test_the_same_prompt_again_and_a_shared_prefix_come_out_of_the_cache(
    serve: Any,
    vl_target: Path,
    all_clips: list[Path],
    image_paths: list[Path],
    options: tuple[str, ...],
) -> None:
    server: Server = serve(vl_target, *options, **FEW_DECODED_BYTES)
    openings = {
        "text": ("The small red circle moves to the left, then it stops behind the wall.",),
        "image": (image_paths[0],),
        "video": (all_clips[0],),
        "two videos": (all_clips[1], all_clips[2]),
    }
    for opening in openings.values():
        server.flush_cache()
        asked = [user(*opening, "What happens?"), user(*opening, "What is it? Look again.")]
        cold = ask(server, asked[0])
        again = ask(server, asked[0])
        branch = ask(server, asked[1])
        assert_as_transformers(vl_target, [asked[0], *asked], [cold, again, branch])
        assert cached_tokens(cold) == 0
        # All but the last token of the prompt, down to whole pages.
        page = PAGE if options is PAGED else 1
        assert cached_tokens(again) == (len(cold.prompt_ids) - 1) // page * page
        shared = _common_length(cold.prompt_ids, branch.prompt_ids)
        assert cached_tokens(branch) == shared // page * page


def _common_length(first: list[int], second: list[int]) -> int:
    return next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)


def test_the_small_chunks_cut_every_video(vl_target: Path, all_clips: list[Path]) -> None:
    video_token = hf.load_model(vl_target).config.video_token_id
    for clip in all_clips:
        messages = user(clip, "What happens?")
        inputs = hf.model_inputs(vl_target, hf.render(vl_target, messages))
        assert int((inputs["input_ids"] == video_token).sum()) > CHUNK


def test_a_path_a_file_url_and_a_data_url_of_one_clip_are_one_prompt(
    serve: Any, vl_target: Path, all_clips: list[Path]
) -> None:
    server: Server = serve(vl_target, *EXACT, **FEW_DECODED_BYTES)
    clip = all_clips[3]
    server.flush_cache()
    first = ask(server, user(clip, "What happens?"))
    for url in (f"file://{clip}", clips.data_url(clip)):
        parts = [{"type": "video_url", "video_url": {"url": url}}]
        parts.append({"type": "text", "text": "What happens?"})
        answer = ask(server, [{"role": "user", "content": parts}])
        assert answer.output_ids == first.output_ids
        assert cached_tokens(answer) == len(first.prompt_ids) - 1


def test_plain_decoding_answers_the_prompts_of_specvlm_with_the_same_tokens(
    serve: Any, vl_target: Path, clip_paths: list[Path], image_paths: list[Path]
) -> None:
    server: Server = serve(vl_target, *EXACT, **FEW_DECODED_BYTES)
    for case in specvlm.cases(vl_target, clip_paths, image_paths):
        answer = server.chat(case.messages, max_tokens=specvlm.NEW_TOKENS)
        assert tuple(answer.output_ids) == case.expected
