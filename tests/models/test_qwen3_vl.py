"""Qwen3-VL's adapter: a span per pair of frames, text between, deepstack rows of kept tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalInputs
from torch import nn

from specvlm_sglang.draft.features import DraftFeatures
from specvlm_sglang.draft.inputs import PromptPart, build_draft_prompt, deepstack_of
from specvlm_sglang.models import family_of
from specvlm_sglang.models.qwen3_vl import Qwen3VL
from specvlm_sglang.request import layout_of

HIDDEN, LAYERS = 2, 3
LENGTH = 34
# Two videos in one item, tokens of 2 x 2 patches: 2 frames of 1 x 3 tokens, 1 frame of 2 x 2.
SPANS = [(4, 6), (11, 13), (22, 25)]
GRIDS = [[2, 2, 6], [1, 4, 4]]


class Tower:
    """Features that say which token of the prompt, which layer and which column they are of."""

    def get_video_feature(self, items: list[Any]) -> torch.Tensor:
        (item,) = items
        places = torch.cat([torch.arange(first, last + 1) for first, last in item.offsets])
        return places[:, None] * 100.0 + torch.arange(HIDDEN * (1 + LAYERS))


def item(spans: list[tuple[int, int]] = SPANS, grids: Any = GRIDS) -> MultimodalDataItem:
    return MultimodalDataItem(
        modality=Modality.VIDEO,
        feature=torch.zeros(1),
        hash=1,
        offsets=spans,
        model_specific_data={"video_grid_thw": torch.tensor(grids)},
    )


def request(*items: MultimodalDataItem) -> Any:
    inputs = MultimodalInputs(mm_items=list(items))
    inputs.mrope_positions = torch.arange(LENGTH).expand(3, -1)
    inputs.mrope_position_delta = torch.tensor([[0]])
    return SimpleNamespace(
        origin_input_ids=list(range(LENGTH)),
        output_ids=[],
        multimodal_inputs=inputs if items else None,
    )


def draft_prompt(req: Any, kept: list[int] | None) -> Any:
    table = nn.Embedding(LENGTH, HIDDEN).requires_grad_(False)
    table.weight[:] = -1.0
    return build_draft_prompt(
        req,
        LENGTH,
        layout_of(req, 256, Qwen3VL()),
        None if kept is None else torch.tensor(kept),
        torch.tensor([9]),
        family=Qwen3VL(),
        features=DraftFeatures(Tower(), Qwen3VL()),
        embed_tokens=table,
    )


def test_dense_and_moe_checkpoints_are_one_family() -> None:
    names = [
        family_of([f"{name}ForConditionalGeneration"]).name for name in ("Qwen3VL", "Qwen3VLMoe")
    ]
    assert names == ["Qwen3-VL", "Qwen3-VL"]


def test_each_video_gets_the_spans_of_its_frames() -> None:
    first, second = Qwen3VL().videos(item())
    assert (first.spans, first.grid) == (((4, 6), (11, 13)), (2, 1, 3))
    assert (second.spans, second.grid) == (((22, 25),), (1, 2, 2))


@pytest.mark.parametrize(
    ("spans", "found"),
    [
        (SPANS[:1], "2 x 1 x 3 tokens has spans of 3 tokens"),
        ([(4, 6), (11, 12), (22, 25)], "spans of 3, 2 tokens"),
        ([], "spans of no tokens"),
    ],
)
def test_spans_that_do_not_fit_the_grid_are_named(spans: list[tuple[int, int]], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        Qwen3VL().videos(item(spans))


def test_times_between_frames_are_text_and_the_ends_of_a_video_ask_nothing() -> None:
    layout = layout_of(request(item()), 256, Qwen3VL())
    assert layout.video_lengths == (6, 4)
    assert layout.video_grids == ((2, 1, 3), (1, 2, 2))
    assert set(range(7, 11)) <= set(layout.text_positions(LENGTH).tolist())
    # The frame's own end and the video's.
    assert (layout.query_start, layout.query_stop) == (28, LENGTH)


@pytest.mark.parametrize("kept", [None, [0], [2, 3, 9]], ids=str)
def test_kept_tokens_have_their_deepstack_rows_and_text_has_none(kept: list[int] | None) -> None:
    found = draft_prompt(request(item()), kept)
    videos = torch.cat([torch.arange(first, last + 1) for first, last in SPANS])
    kept_places = set(videos.tolist() if kept is None else videos[kept].tolist())
    places = [p for p in range(LENGTH) if p in kept_places or p not in videos.tolist()]
    assert found.tokens == len(places) + 1
    assert found.deepstack.shape == (found.tokens, LAYERS * HIDDEN)
    for place, embedding, rows in zip(places, found.embeddings, found.deepstack, strict=False):
        if place in kept_places:
            features = place * 100.0 + torch.arange(HIDDEN * (1 + LAYERS))
            assert torch.equal(torch.cat([embedding, rows]), features)
        else:
            assert embedding.tolist() == [-1.0] * HIDDEN
            assert not rows.any()
    assert not found.deepstack[-1].any()


def test_prompts_of_text_in_a_pass_with_videos_get_zeros() -> None:
    video, text = draft_prompt(request(item()), [1, 2]), draft_prompt(request(), None)
    assert text.deepstack is None
    parts = [PromptPart(0, text, 5, 9), PromptPart(1, video, 2, 8)]
    found = deepstack_of(parts)
    assert found is not None
    assert not found[:4].any()
    assert torch.equal(found[4:], video.deepstack[2:8])
    assert found[4:].any()


def test_a_pass_of_text_has_no_deepstack_rows() -> None:
    text = draft_prompt(request(), None)
    assert deepstack_of([PromptPart(0, text, 0, text.tokens)]) is None
