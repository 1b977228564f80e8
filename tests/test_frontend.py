"""Frames of `sgl.video` on their way: encoded by the program, understood by the server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from specvlm_sglang.frontend import PREFIX, decode_frames, encode_frames
from specvlm_sglang.host.frontend_video import IMAGE, VIDEO, check_model_type, split_media
from specvlm_sglang.host.media.reader import PyAVReader


def test_frames_survive_the_wire_unchanged(clip_paths: list[Path]) -> None:
    frames = decode_frames(encode_frames(str(clip_paths[0]), 5))
    reader = PyAVReader(str(clip_paths[0]))
    expected = [reader[int(index)] for index in np.linspace(0, len(reader) - 1, 5)]
    assert np.array_equal(frames, np.stack(expected))


def test_videos_and_images_get_their_own_placeholders(clip_paths: list[Path]) -> None:
    video = encode_frames(str(clip_paths[0]), 2)
    text, images, videos = split_media(
        f"a{IMAGE}b{IMAGE}c{IMAGE}", [video, "picture", video], PREFIX, decode_frames
    )
    assert text == f"a{VIDEO}b{IMAGE}c{VIDEO}"
    assert images == ["picture"]
    assert [tuple(frames.shape[:2]) for frames in videos] == [(2, 3), (2, 3)]


@pytest.mark.parametrize("broken", [PREFIX, f"{PREFIX}!!", f"{PREFIX}aGVsbG8="])
def test_broken_frames_are_refused(broken: str) -> None:
    with pytest.raises(ValueError, match=r"not the frames of an sgl\.video"):
        decode_frames(broken)


def test_a_prompt_with_other_placeholders_than_media_is_refused() -> None:
    with pytest.raises(ValueError, match="0 image placeholders for 1 images"):
        split_media("no placeholder", ["picture"], PREFIX, decode_frames)


@pytest.mark.parametrize("model_type", ["qwen3_vl", "qwen3_vl_moe"])
def test_models_whose_prompts_state_times_refuse_frames_without(model_type: str) -> None:
    with pytest.raises(ValueError, match=f"prompt of {model_type} states"):
        check_model_type(model_type)
    check_model_type("qwen2_5_vl")


def test_models_of_other_processors_refuse_frames_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"qwen2_vl and qwen2_5_vl, not with glm4v: .*video_url"):
        check_model_type("glm4v")


def test_no_frames_are_refused(clip_paths: list[Path]) -> None:
    with pytest.raises(ValueError, match="num_frames=0"):
        encode_frames(str(clip_paths[0]), 0)
