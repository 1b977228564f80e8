"""Placeholders that do not fit the files, and media that come ready-made."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalInputFormat
from sglang.srt.multimodal.processors.base_processor import MultimodalSpecialTokens

from specvlm_sglang.host import media_inputs
from specvlm_sglang.host.media_inputs import check_pixels, use_embeddings, without_word

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
OWN = r"<\|vision_start\|>(?:<\|image_pad\|>)+<\|vision_end\|>"
HIDDEN = 8
PROCESSOR: Any = SimpleNamespace(
    _spatial_merge_size=2,
    hf_config=SimpleNamespace(
        hidden_size=HIDDEN, vision_config=SimpleNamespace(patch_size=2, temporal_patch_size=2)
    ),
)


@pytest.fixture
def tokens() -> MultimodalSpecialTokens:
    """As SGLang's Qwen processors have them."""
    made = MultimodalSpecialTokens(
        image_token=IMAGE,
        image_token_regex=re.compile(f"{OWN}|<image>"),
        video_token="<|video_pad|>",
    )
    made.parse_regex()
    made.get_combined_regex()
    return made


@pytest.mark.parametrize(
    ("prompt", "images", "stands_for_an_image"),
    [
        ("<image> What is it?", ["a.png"], True),
        (f"{IMAGE} What does <image> mean?", ["a.png"], False),
        ("<|video_pad|> What does <image> mean in HTML?", None, False),
        ("<image>", [], False),
    ],
)
def test_the_word_image_is_text_unless_it_can_stand_for_one(
    tokens: Any, prompt: str, images: Any, stands_for_an_image: bool
) -> None:
    found = without_word(tokens, prompt, images).get_combined_regex()
    assert ("<image>" in found.findall(prompt)) is stands_for_an_image
    assert found.findall(prompt).count(IMAGE) == prompt.count(IMAGE)


def test_token_ids_are_left_to_sglang(tokens: Any) -> None:
    assert without_word(tokens, [1, 2], None) is tokens


def combined(items: list[Any]) -> Any:
    def original(self: Any, base_output: Any, mm_tokens: Any) -> Any:
        return items, None, {}

    loaded = SimpleNamespace(images=[], videos=[])
    return media_inputs._checked(original)(PROCESSOR, loaded, None)


def test_what_a_processor_has_no_file_for_is_an_error_that_can_be_waited_for(tokens: Any) -> None:
    def original(self: Any, base_output: Any, mm_tokens: Any) -> Any:
        return next(iter(()))

    loaded = SimpleNamespace(images=["a"], videos=[])
    with pytest.raises(ValueError, match=r"more placeholders than files \(1 images, 0 videos\)"):
        media_inputs._checked(original)(PROCESSOR, loaded, tokens)


def item(modality: Modality, fmt: MultimodalInputFormat | None, feature: Any, **data: Any) -> Any:
    return MultimodalDataItem(
        modality=modality, feature=feature, format=fmt, offsets=[(3, 6)], model_specific_data=data
    )


@pytest.mark.parametrize("modality", [Modality.IMAGE, Modality.VIDEO])
@pytest.mark.parametrize("shape", [(4, HIDDEN), (1, 4, HIDDEN)])
def test_embeddings_are_taken_as_they_are(modality: Modality, shape: tuple[int, ...]) -> None:
    feature = torch.randn(shape)
    grid = {f"{modality.name.lower()}_grid_thw": [[1, 4, 4]]}
    made = item(modality, MultimodalInputFormat.PRECOMPUTED_EMBEDDING, feature, **grid)
    combined([made])
    assert made.feature is None
    assert torch.equal(made.precomputed_embeddings, feature.reshape(4, HIDDEN))


@pytest.mark.parametrize(
    ("feature", "says"),
    [
        ([[0.0] * HIDDEN] * 4, "must be a tensor of floats"),
        (torch.zeros(4, HIDDEN, dtype=torch.int64), "must be a tensor of floats"),
        (torch.zeros(4, HIDDEN + 1), r"'feature' is \[4, 9\]; precomputed embeddings are"),
        (torch.zeros(HIDDEN), r"'feature' is \[8\]"),
        (torch.zeros(5, HIDDEN), "5 precomputed embeddings, and the prompt has 4 placeholders"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(feature: Any, says: str) -> None:
    made = item(Modality.VIDEO, MultimodalInputFormat.PRECOMPUTED_EMBEDDING, feature)
    with pytest.raises(ValueError, match=f"video_data: .*{says}"):
        use_embeddings(made, HIDDEN)


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        (None, "need video_grid_thw"),
        ("x", "need video_grid_thw"),
        (torch.tensor([[1, 4]]), "need video_grid_thw"),
        (torch.tensor([[5, 4, 4]]), "video_grid_thw means 20 tokens, and there are 4 embeddings"),
    ],
)
def test_embeddings_need_a_grid_of_their_own_size(grid: Any, says: str) -> None:
    feature = torch.zeros(4, HIDDEN)
    given = {} if grid is None else {"video_grid_thw": grid}
    made = item(Modality.VIDEO, MultimodalInputFormat.PRECOMPUTED_EMBEDDING, feature, **given)
    with pytest.raises(ValueError, match=says):
        combined([made])


def pixels(patches: int, values: int = 24, grid: Any = None) -> Any:
    grid = torch.tensor([[1, 4, 4]]) if grid is None else grid
    return item(
        Modality.IMAGE,
        MultimodalInputFormat.PROCESSOR_OUTPUT,
        torch.zeros(patches, values),
        image_grid_thw=grid,
    )


def test_pixels_that_fit_their_grid_are_left_alone() -> None:
    made = pixels(16)
    combined([made])
    assert made.feature.shape == (16, 24)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (pixels(15), "means 16 patches and 4 tokens; there are 15 patches"),
        (pixels(32, grid=torch.tensor([[2, 4, 4]])), "8 tokens; .* 4 placeholders"),
        (pixels(16, values=23), "a patch has 23 values, not 24"),
        (pixels(16, grid=torch.tensor([1, 4, 4])), r"\[files, 3\]"),
        (pixels(16, grid=[[1, 4, 4]]), "as tensors"),
    ],
)
def test_pixels_that_do_not_fit_are_refused(made: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_pixels(made, PROCESSOR)
