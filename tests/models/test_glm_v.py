"""GLM-V's adapter: spans of images inside a video's brackets."""

from __future__ import annotations

import pytest
import torch
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem

from specvlm_sglang.models import family_of
from specvlm_sglang.models.glm_v import GlmV


def item(spans: list[tuple[int, int]]) -> MultimodalDataItem:
    return MultimodalDataItem(
        modality=Modality.VIDEO,
        offsets=spans,
        model_specific_data={"video_grid_thw": torch.tensor([[2, 4, 6]])},
    )


def test_a_video_has_the_spans_of_its_frames_and_what_closes_a_frame_asks_nothing() -> None:
    (video,) = GlmV().videos(item([(5, 10), (14, 19)]))
    assert video.spans == ((5, 10), (14, 19))
    assert (video.grid, video.trailing) == ((2, 2, 3), 1)


def test_spans_that_do_not_fit_the_grid_are_named() -> None:
    with pytest.raises(ValueError, match="2 x 2 x 3 tokens has spans of 6, 5 tokens"):
        GlmV().videos(item([(5, 10), (14, 18)]))


def test_dense_and_moe_checkpoints_are_one_family() -> None:
    names = [family_of([f"{name}ForConditionalGeneration"]).name for name in ("Glm4v", "Glm4vMoe")]
    assert names == ["GLM-V", "GLM-V"]
