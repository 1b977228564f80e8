"""Tokens of images and videos, their number and their order, against transformers' own rules."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from specvlm_sglang.models.native.llava_onevision.packing import Layout
from tests.support.llava_checkpoints import TARGET_TOWER
from tests.support.tokenizer import build_tokenizer

PUBLISHED = LlavaOnevisionConfig()
TINY = LlavaOnevisionConfig(
    vision_config={
        "model_type": "siglip_vision_model",
        "image_size": TARGET_TOWER.tile,
        "patch_size": TARGET_TOWER.patch,
    },
    image_grid_pinpoints=TARGET_TOWER.pinpoints,
    vision_aspect_ratio=f"anyres_max_{TARGET_TOWER.max_tiles}",
)
CONFIGS = pytest.mark.parametrize("config", [PUBLISHED, TINY], ids=["published", "tiny"])


def sizes(config: LlavaOnevisionConfig) -> list[tuple[int, int]]:
    """Heights and widths: the tiles' own, thin ones, tiny ones, and many at random."""
    tile = config.vision_config.image_size
    chosen = [(tile, tile), (2 * tile, 3 * tile), (1, 1), (7, 6 * tile), (6 * tile, 7), (1, 9999)]
    rng = random.Random(0)
    return chosen + [
        (int(2 ** rng.uniform(0, 12)), int(2 ** rng.uniform(0, 12))) for _ in range(400)
    ]


def processor(config: LlavaOnevisionConfig) -> LlavaOnevisionProcessor:
    size = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    pinpoints = config.image_grid_pinpoints
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        tokenizer=build_tokenizer(256),
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=Layout.of(config).side ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=config.vision_aspect_ratio,
    )


def random_features(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@CONFIGS
def test_a_single_image_of_any_size_has_the_tokens_that_transformers_counts(
    config: LlavaOnevisionConfig,
) -> None:
    layout = Layout.of(config)
    asked = sizes(config)
    counted = processor(config)._get_num_multimodal_tokens(image_sizes=asked)
    assert [layout.image_tokens(size, alone=True) for size in asked] == counted["num_image_tokens"]
    assert len(set(counted["num_image_tokens"])) > 30


@CONFIGS
def test_a_video_has_the_tokens_that_transformers_counts(config: LlavaOnevisionConfig) -> None:
    layout = Layout.of(config)
    asked = [1, 2, 5, 32, 128]
    counted = processor(config)._get_num_multimodal_tokens(
        video_sizes=[(frames, 99, 99) for frames in asked]
    )
    assert [layout.video_tokens(frames) for frames in asked] == counted["num_video_tokens"]


def test_a_published_frame_has_196_tokens_of_729_patches() -> None:
    layout = Layout.of(PUBLISHED)
    assert (layout.side**2, layout.pooled_side**2) == (729, 196)
    assert layout.video_tokens(8) == 8 * 196 + 1


@CONFIGS
def test_a_tiled_image_is_laid_out_as_transformers_does(config: LlavaOnevisionConfig) -> None:
    layout = Layout.of(config)
    holder = SimpleNamespace(config=config)
    newline = random_features(6)
    shrunk = False
    for size in sizes(config)[:120]:
        rows, columns = layout.tiles(size)
        features = random_features(rows * columns + 1, layout.side**2, 6)
        (expected,), _ = LlavaOnevisionModel.pack_image_features(
            holder,
            [features],
            torch.tensor([size]),
            image_newline=newline,
            vision_aspect_ratio=config.vision_aspect_ratio,
        )
        found = layout.pack_image(features, size, newline)
        assert torch.equal(found, expected), size
        assert len(found) == layout.image_tokens(size, alone=True)
        shrunk |= rows * columns > 1.3 * layout.max_tiles
    assert shrunk, "no image was large enough to be shrunk"


@CONFIGS
def test_one_of_several_images_is_one_square_and_a_newline(config: LlavaOnevisionConfig) -> None:
    layout = Layout.of(config)
    features, newline = random_features(1, layout.side**2, 6), random_features(6)
    found = layout.pack_image(features, (50, 80), newline)
    assert torch.equal(found, torch.cat([features[0], newline[None]]))
    assert len(found) == layout.image_tokens((50, 80), alone=False)


@CONFIGS
def test_frames_are_pooled_as_transformers_does_with_one_newline_at_the_end(
    config: LlavaOnevisionConfig,
) -> None:
    layout = Layout.of(config)
    features, newline = random_features(5, layout.side**2, 6), random_features(6)
    holder = SimpleNamespace(config=config)
    pooled = LlavaOnevisionModel.apply_pooling(holder, features)
    found = layout.pack_video(features, newline)
    assert torch.equal(found[:-1], pooled.reshape(-1, 6))
    assert torch.equal(found[-1], newline)


def test_the_image_processor_makes_as_many_tiles_as_are_laid_out() -> None:
    layout = Layout.of(TINY)
    prepared = processor(TINY).image_processor
    for height, width in [(96, 128), (30, 30), (40, 200), (200, 41), (11, 13)]:
        picture = Image.fromarray(np.zeros((height, width, 3), np.uint8))
        pixels = prepared([[picture]], return_tensors="pt")["pixel_values"]
        rows, columns = layout.tiles((height, width))
        assert pixels.shape[1] == rows * columns + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy='default'"),
        ({"vision_aspect_ratio": "pad"}, "vision_aspect_ratio='pad' must be 'anyres_max_'"),
        (
            {"vision_config": {"model_type": "clip_vision_model"}},
            r"vision_config\.model_type='clip_vision_model'",
        ),
    ],
)
def test_what_is_not_served_is_refused_by_its_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout.of(LlavaOnevisionConfig(**change))


def test_a_layout_depends_on_nothing_but_its_numbers() -> None:
    layout = Layout.of(TINY)
    assert replace(layout, max_tiles=9).image_tokens((90, 90), alone=True) > layout.image_tokens(
        (90, 90), alone=True
    )
