"""The test support itself: what it builds is real, complete and able to show a difference."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import av
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from specvlm_sglang.tools.errors import ToolError
from specvlm_sglang.tools.server import session_processes
from tests.conftest import ServerPool
from tests.support import checkpoints, clips, hf
from tests.support.messages import user
from tests.support.server import Server
from tests.support.tokenizer import build_tokenizer, speakable_ids

QUESTION = "Describe this video."
# Rounding moves float32 logits of these models by some 1e-5.
CLEAR_MARGIN = 2e-4

LOAD = """
import sys, transformers
transformers.logging.disable_progress_bar()
kind, directory = sys.argv[1:]
if kind == "vl":
    model, info = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        directory, output_loading_info=True)
    processor = transformers.AutoProcessor.from_pretrained(directory)
    assert type(processor).__name__ == "Qwen2_5_VLProcessor", type(processor)
else:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True)
    transformers.AutoTokenizer.from_pretrained(directory)
assert not any(info.values()), info
"""


@pytest.mark.parametrize(("kind", "fixture"), [("vl", "vl_target"), ("text", "text_target")])
def test_checkpoints_load_without_a_warning(
    kind: str, fixture: str, request: pytest.FixtureRequest
) -> None:
    directory = request.getfixturevalue(fixture)
    run = subprocess.run(
        [sys.executable, "-W", "default::UserWarning", "-c", LOAD, kind, str(directory)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_the_same_seed_writes_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    weights = [
        checkpoints.qwen2_text(tmp_path / name, checkpoints.DRAFT, seed=seed)
        .joinpath("model.safetensors")
        .read_bytes()
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    ]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_padding_rows_and_special_tokens_are_never_said(tmp_path: Path) -> None:
    shape = replace(checkpoints.DRAFT, vocab_padding=50)
    directory = checkpoints.qwen2_text(tmp_path, shape, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == len(tokenizer) + 50
    said = {*speakable_ids(tokenizer), tokenizer.eos_token_id}
    silent = [token for token in range(model.config.vocab_size) if token not in said]
    assert model.lm_head.weight[silent].abs().max() == 0
    assert model.lm_head.weight[sorted(said)].abs().amax(1).min() > 0
    unpadded = checkpoints.qwen2_text(
        tmp_path / "unpadded", checkpoints.DRAFT, dtype=torch.bfloat16
    )
    weight = AutoModelForCausalLM.from_pretrained(unpadded).lm_head.weight
    assert torch.equal(model.lm_head.weight[: len(tokenizer)], weight)


def test_benchmark_shapes_have_the_parameters_they_promise() -> None:
    for shape, millions in ((checkpoints.M150, 150), (checkpoints.M350, 360)):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(checkpoints.text_config(shape))
        assert model.num_parameters() / 1e6 == pytest.approx(millions, rel=0.05)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"hidden": 32}, "hidden"),
        ({"heads": 3}, "heads"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"layers": 0}, "layers"),
        ({"text_tokens": 100}, "text_tokens"),
        ({"text_tokens": 100_000}, "text_tokens"),
    ],
)
def test_a_shape_out_of_range_is_refused_by_name(
    change: dict[str, int], name: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=name):
        checkpoints.qwen2_text(tmp_path, replace(checkpoints.TARGET, **change))


def test_the_tokenizer_gives_back_any_text() -> None:
    tokenizer = build_tokenizer(300)
    text = "Größe 漢字 \n\t<|im_start|>user: 12.5 % of the red circle's path"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("<|video_pad|>").input_ids == [len(tokenizer) - 1]


def test_a_clip_has_the_frames_it_was_asked_for_and_they_move(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "a.mp4", seed=1, frames=7, fps=5, height=64, width=80)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 5
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    drawn = clips.draw(seed=1, frames=7, height=64, width=80)
    assert [frame.shape for frame in frames] == [(64, 80, 3)] * 7
    moved = [abs(a.astype(int) - b).mean() for a, b in pairwise(drawn)]
    decoded = [abs(a.astype(int) - b).mean() for a, b in zip(drawn, frames, strict=True)]
    assert min(moved) > 1
    assert max(decoded) < 0.6 * max(moved)


@pytest.mark.parametrize(
    "write",
    [
        clips.write_truncated_clip,
        clips.write_empty_file,
        clips.write_text_file,
        clips.write_sound_only,
        clips.write_clip_without_frames,
    ],
)
def test_a_broken_file_yields_no_frame(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path / "broken.mp4")
    with (
        pytest.raises((av.error.FFmpegError, IndexError, StopIteration)),
        av.open(str(path)) as container,
    ):
        next(container.decode(video=0))


def test_sampled_frames_follow_sglangs_rule_and_carry_their_rate(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "a.mp4", frames=36, fps=6)
    video = hf.sample_video(path)
    assert video.frames.dtype == torch.uint8
    assert list(video.metadata["frames_indices"]) == [0, 3, 6, 9, 12, 15, 19, 22, 25, 28, 31, 35]
    assert video.seconds_per_grid == pytest.approx(1.0)
    assert video.seconds_per_grid_in_sglang == pytest.approx(2 / 24)


def test_the_processor_takes_the_frame_rate_only_where_it_is_given(
    vl_target: Path, clip_paths: list[Path]
) -> None:
    prompt = hf.render(vl_target, user(clip_paths[0], QUESTION))
    exact = hf.model_inputs(vl_target, prompt, exact=True)
    plain = hf.model_inputs(vl_target, prompt, exact=False)
    assert exact["input_ids"].equal(plain["input_ids"])
    assert list(exact["second_per_grid_ts"]) == pytest.approx([prompt.videos[0].seconds_per_grid])
    assert list(plain["second_per_grid_ts"]) == pytest.approx([2 / 24])


def test_answers_depend_on_the_video_vary_and_are_not_near_ties(
    vl_target: Path, clip_paths: list[Path]
) -> None:
    answers = [
        hf.greedy(vl_target, user(clip, QUESTION), 32, ignore_eos=True) for clip in clip_paths
    ]
    assert all(one.output_ids != other.output_ids for one, other in combinations(answers, 2))
    assert min(len(set(answer.output_ids)) for answer in answers) >= 12
    assert min(min(answer.margins) for answer in answers) > CLEAR_MARGIN
    assert all(answer.text.isascii() and answer.text for answer in answers)


def test_answers_depend_on_how_the_video_is_seen(vl_target: Path, clip_paths: list[Path]) -> None:
    exact, plain = (
        [
            hf.greedy(vl_target, user(clip, QUESTION), 32, exact=way).output_ids
            for clip in clip_paths[:2]
        ]
        for way in (True, False)
    )
    assert exact != plain


def test_a_paths_answer_is_its_data_urls_answer(vl_target: Path, clip_paths: list[Path]) -> None:
    by_path, inline = (
        hf.greedy(vl_target, user(clip_paths[0], QUESTION, inline=way), 8) for way in (False, True)
    )
    assert by_path == inline


@pytest.mark.parametrize("frames", [12, 60])
def test_positions_equal_sglangs(vl_target: Path, tmp_path: Path, frames: int) -> None:
    from sglang.srt.layers.rotary_embedding import MRotaryEmbedding

    clip = clips.write_clip(tmp_path / "a.mp4", frames=frames, fps=6)
    image = clips.write_image(tmp_path / "a.png")
    prompt = hf.render(vl_target, user("First", clip, "then", image, "?"))
    inputs = hf.model_inputs(vl_target, prompt)
    config = AutoConfig.from_pretrained(vl_target)
    ours, delta = hf.rope_index(vl_target, inputs)
    theirs, their_delta = MRotaryEmbedding.get_rope_index(
        spatial_merge_size=config.vision_config.spatial_merge_size,
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        vision_start_token_id=config.vision_start_token_id,
        model_type=config.model_type,
        tokens_per_second=config.vision_config.tokens_per_second,
        input_ids=inputs["input_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        video_grid_thw=inputs["video_grid_thw"],
        second_per_grid_ts=inputs["second_per_grid_ts"],
    )
    assert ours.equal(theirs)
    assert delta.equal(their_delta)


def test_positions_equal_transformers_where_time_reaches_no_further_than_space(
    vl_target: Path, tmp_path: Path
) -> None:
    image = clips.write_image(tmp_path / "a.png")
    clip = clips.write_clip(tmp_path / "a.mp4")
    prompt = hf.render(vl_target, user(image, "and", clip, QUESTION))
    inputs = hf.model_inputs(vl_target, prompt, exact=False)
    ours, delta = hf.rope_index(vl_target, inputs)
    theirs, their_delta = Qwen2_5_VLModel.get_rope_index(hf.load_model(vl_target).model, **inputs)
    assert ours.equal(theirs)
    assert delta.equal(their_delta)


def test_the_draft_agrees_with_its_target_on_part_of_the_tokens(
    text_target: Path, text_draft: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(text_target)
    agreed = []
    for prompt in ("Then the red circle", "What happens in the image?", QUESTION):
        answer = hf.greedy(text_target, tokenizer(prompt).input_ids, 40, ignore_eos=True)
        tokens = torch.tensor([answer.prompt_ids + answer.output_ids])
        with torch.no_grad():
            guesses = hf.load_model(text_draft)(input_ids=tokens).logits[0].argmax(-1)
        first = len(answer.prompt_ids)
        agreed += (guesses[first - 1 : -1] == tokens[0, first:]).tolist()
    assert 0.25 < sum(agreed) / len(agreed) < 0.85


@pytest.mark.slow
@pytest.mark.serving
def test_a_server_answers_as_transformers_does_and_leaves_no_process(
    vl_target: Path, clip_paths: list[Path], tmp_path: Path
) -> None:
    args = ("--dtype", "float32", "--skip-server-warmup", "--enable-metrics")
    with Server(vl_target, *args, log=tmp_path / "server.log") as server:
        question = user(clip_paths[0], QUESTION)
        answer = server.chat(question, max_tokens=16, ignore_eos=True)
        expected = hf.greedy(vl_target, question, 16, exact=False, ignore_eos=True)
        assert answer.prompt_ids == expected.prompt_ids
        assert answer.output_ids == expected.output_ids
        assert answer.text == expected.text
        generated = server.generate(expected.prompt_ids[:4], max_new_tokens=5, ignore_eos=True)
        assert len(generated["output_ids"]) == 5
        assert server.server_info()["model_path"] == str(vl_target)
        assert server.metrics()["sglang:generation_tokens_total"] == 21
        session = server.pid
        assert len(session_processes(session)) >= 3
    assert not server.is_healthy()
    assert session_processes(session) == []


@pytest.mark.slow
@pytest.mark.serving
def test_a_server_that_cannot_start_shows_the_end_of_its_log(
    serve: ServerPool, tmp_path: Path
) -> None:
    missing = tmp_path / "no-such-model"
    with pytest.raises(ToolError, match=r"the server ended[\s\S]*no-such-model[\s\S]*Error"):
        serve(missing)
