"""The SPECVLM adapter: what of a prompt is video, and how the draft's part of it is numbered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalInputs
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from torch import nn

from reference.positions import kept_prompt_indices, pruned_positions
from specvlm_sglang.draft.features import DraftFeatures
from specvlm_sglang.draft.inputs import build_draft_prompt
from specvlm_sglang.draft.kv_cache import DraftKVCache
from specvlm_sglang.host import draft_positions
from specvlm_sglang.models import family_of
from specvlm_sglang.models.llava_onevision import LlavaOnevision
from specvlm_sglang.request import layout_of

NEWEST = 5
# 0-2 text, 3-15 video (3 frames of 2 x 2, newline at 15), 16-17 text, 18-22 video (1 frame), 23-25.
LENGTH = 26
SPANS = [((3, 15), (3, 2, 2)), ((18, 22), (1, 2, 2))]


class Tower:
    """Features that say which item and which of its tokens they are."""

    def get_video_feature(self, items: list[Any]) -> torch.Tensor:
        (item,) = items
        ((first, last),) = item.offsets
        return torch.arange(first, last + 1)[:, None].float() + 100


def request(spans: list[Any] = SPANS, length: int = LENGTH) -> Any:
    items = [
        MultimodalDataItem(
            modality=Modality.VIDEO,
            feature=torch.zeros(1),
            hash=number,
            offsets=[span],
            model_specific_data={"video_grid": grid},
        )
        for number, (span, grid) in enumerate(spans)
    ]
    return SimpleNamespace(
        origin_input_ids=list(range(length)),
        output_ids=[],
        multimodal_inputs=MultimodalInputs(mm_items=items),
    )


def test_the_newline_at_a_videos_end_is_no_video_token_and_asks_nothing() -> None:
    prompt = layout_of(request(), 256, LlavaOnevision())
    assert prompt.video_positions.tolist() == [*range(3, 15), *range(18, 22)]
    assert prompt.video_lengths == (12, 4)
    assert prompt.video_grids == ((3, 2, 2), (1, 2, 2))
    assert (prompt.query_start, prompt.query_stop) == (23, 26)
    assert {15, 22} <= set(prompt.text_positions(LENGTH).tolist())


def test_a_prompt_that_ends_with_its_video_has_no_query_rows() -> None:
    prompt = layout_of(request(length=23), 256, LlavaOnevision())
    assert prompt.query_rows == 0


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("kept", [None, [0], [1, 5, 11, 12, 15]], ids=str)
def test_newlines_are_kept_with_their_own_features_and_positions_follow_the_option(
    original: bool, kept: list[int] | None
) -> None:
    req = request()
    prompt = layout_of(req, 256, LlavaOnevision())
    table = nn.Embedding(LENGTH, 1).requires_grad_(False)
    with torch.no_grad():
        found = build_draft_prompt(
            req,
            LENGTH,
            prompt,
            None if kept is None else torch.tensor(kept),
            torch.tensor([NEWEST]),
            family=LlavaOnevision(),
            features=DraftFeatures(Tower(), LlavaOnevision()),
            embed_tokens=table,
            original_positions=original,
        )
    video = [(3, 15), (18, 22)]
    every = list(range(prompt.video_tokens))
    columns = kept_prompt_indices(LENGTH + 1, video, every if kept is None else kept)
    visual = [place for place in columns if 3 <= place <= 15 or 18 <= place <= 22]
    assert {15, 22} <= set(visual)
    values = dict(zip(columns, found.embeddings[:, 0].tolist(), strict=True))
    for place, value in values.items():
        if place in visual:
            assert value == 100 + place
        else:
            token = NEWEST if place == LENGTH else place
            assert value == pytest.approx(float(table.weight[token, 0]))
    assert found.mrope_positions is None
    expected = pruned_positions(
        "original" if original else "contiguous", columns, prompt_length=LENGTH + 1
    )
    if original:
        assert found.positions is not None
        np.testing.assert_array_equal(found.positions.numpy(), expected)
    else:
        assert found.positions is None
        np.testing.assert_array_equal(np.arange(len(columns)), expected)


def test_the_family_is_found_by_its_architecture_and_has_one_dimensional_positions() -> None:
    family = family_of(["LlavaOnevisionForConditionalGeneration"])
    assert family.name == "LLaVA-OneVision"
    assert not family.mrope
    assert family.prompt_positions(None, 9, torch.device("cpu")) is None


def test_rows_know_how_many_tokens_their_draft_never_saw() -> None:
    class Slots:
        page_size = 1

        def available_size(self) -> int:
            return 50

        def alloc(self, count: int) -> torch.Tensor:
            return torch.arange(count)

        def free(self, slots: torch.Tensor) -> None:
            pass

    rows = SimpleNamespace(req_to_token=torch.zeros(4, 40, dtype=torch.int32))
    cache = DraftKVCache(rows, Slots(), target_capacity=100)
    assert cache.admit(1, draft_length=11, target_length=30)
    assert cache.admit(3, draft_length=8, target_length=7)
    # Row 2 is cold: nobody reads what it drafts.
    assert cache.missing(torch.tensor([3, 2, 1])).tolist() == [0, 0, 20]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (ForwardMode.DECODE, [24, 24, 9, 9]),
        (ForwardMode.DRAFT_EXTEND_V2, [24, 24, 9, 9]),
        (ForwardMode.EXTEND, [4, 4, 9, 9]),
    ],
)
def test_only_the_model_sees_drafted_tokens_numbered_later(
    mode: ForwardMode, expected: list[int]
) -> None:
    def forward(
        input_ids: torch.Tensor, positions: torch.Tensor, forward_batch: Any, flag: bool = False
    ) -> tuple[list[int], bool]:
        return positions.tolist(), flag

    model = SimpleNamespace(forward=forward)
    missing = torch.tensor([0, 20, 0])
    draft_positions.number_drafted_tokens_as(model, lambda rows: missing[rows])
    batch = SimpleNamespace(
        forward_mode=mode,
        req_pool_indices=torch.tensor([1, 2]),
        # A GPU's attention backends read these as lengths of the KV cache.
        positions=torch.tensor([4, 4, 9, 9]),
    )
    found = model.forward(torch.zeros(4), batch.positions, batch, flag=True)
    assert found == (expected, True)
    assert batch.positions.tolist() == [4, 4, 9, 9]


def test_a_model_that_also_verifies_is_numbered_later_while_it_drafts_alone() -> None:
    class Model:
        def forward(self, input_ids: Any, positions: torch.Tensor, forward_batch: Any) -> list[int]:
            found: list[int] = positions.tolist()
            return found

    model, positions = Model(), torch.tensor([4, 9])
    batch = SimpleNamespace(
        forward_mode=ForwardMode.DECODE, req_pool_indices=torch.tensor([0, 1]), positions=positions
    )
    for _ in range(2):
        with draft_positions.numbered_as(model, lambda rows: 10 * rows):
            assert model.forward(None, positions, batch) == [4, 19]
        assert model.forward(None, positions, batch) == [4, 9]
    held = model.forward = lambda input_ids, positions, forward_batch: [0]  # type: ignore[method-assign]
    with draft_positions.numbered_as(model, lambda rows: rows):
        pass
    assert model.forward is held


def test_an_idle_batch_has_nothing_to_number() -> None:
    model = SimpleNamespace(forward=lambda input_ids, positions, forward_batch: len(positions))
    draft_positions.number_drafted_tokens_as(model, lambda rows: rows)
    empty = torch.empty(0, dtype=torch.int64)
    batch = SimpleNamespace(forward_mode=ForwardMode.DECODE, req_pool_indices=empty)
    assert model.forward(empty, empty, batch) == 0
