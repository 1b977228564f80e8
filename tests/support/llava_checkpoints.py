"""Complete Hugging Face directories of random LLaVA-OneVision models; see `checkpoints`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)
from transformers.tokenization_utils_base import AddedToken

from tests.support.checkpoints import TARGET, LanguageShape, _language_fields, _write
from tests.support.tokenizer import build_tokenizer
from tests.support.weights import Mixing

# As published: images first, then videos, then text, whatever their order in the message; a
# message that is a plain string renders to nothing.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + content['text'] }}{% endfor %}"
    "{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\\n' + content['text'] }}{% endgeneration %}{% endfor %}"
    "{% endif %}"
    "{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class TowerShape:
    """Sizes of a SigLIP tower and how images are tiled.

    Attributes
    ----------
    hidden, layers, heads, intermediate : int
        Width, depth, heads and MLP width.
    tile, patch : int
        Sides in pixels; `tile` is no multiple of `patch`, as published (384 and 14).
    reach : int
        An image may be resized to at most so many tiles along a side.
    max_tiles : int
        Beyond so many tiles' worth of tokens an image is shrunk.
    """

    hidden: int = 64
    layers: int = 3
    heads: int = 2
    intermediate: int = 96
    tile: int = 30
    patch: int = 4
    reach: int = 3
    max_tiles: int = 3

    @property
    def pinpoints(self) -> list[list[int]]:
        sides = [self.tile * count for count in range(1, self.reach + 1)]
        return [[height, width] for height in sides for width in sides]

    @property
    def patches(self) -> int:
        return (self.tile // self.patch) ** 2


TARGET_TOWER = TowerShape()
DRAFT_TOWER = TowerShape(hidden=32, layers=2, heads=1, intermediate=48)


def llava_onevision(
    directory: Path,
    shape: LanguageShape = TARGET,
    tower: TowerShape = TARGET_TOWER,
    *,
    seed: int = 0,
    family: int = 0,
    dtype: torch.dtype = torch.float32,
    mixing: Mixing | None = None,
    vision_feature_layer: int | list[int] = -1,
) -> Path:
    """Write a LLaVA-OneVision checkpoint.

    Parameters
    ----------
    directory : Path
        Created if missing.
    shape, tower : LanguageShape, TowerShape
        Sizes of language model and vision tower.
    seed, family, dtype, mixing
        As for `checkpoints.qwen2_5_vl`.
    vision_feature_layer : int or list of int
        As in the configuration.

    Returns
    -------
    Path
        `directory`.

    Raises
    ------
    ValueError
        If a size is out of range; the message names it.
    """
    tokenizer = build_tokenizer(shape.text_tokens)
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<image>", "<video>")],
        special_tokens=True,
    )
    config = LlavaOnevisionConfig(
        text_config=_language_fields(shape, tokenizer) | {"model_type": "qwen2"},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": tower.hidden,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "intermediate_size": tower.intermediate,
            "image_size": tower.tile,
            "patch_size": tower.patch,
            "vision_use_head": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=tower.pinpoints,
        vision_aspect_ratio=f"anyres_max_{tower.max_tiles}",
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        model = LlavaOnevisionForConditionalGeneration(config)
    _write(directory, model, tokenizer, seed=seed, family=family, dtype=dtype, mixing=mixing)
    tokenizer.chat_template = None
    size = {"height": tower.tile, "width": tower.tile}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=tower.pinpoints
        ),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=tower.patches,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=f"anyres_max_{tower.max_tiles}",
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(directory)
    processor.image_processor.save_pretrained(directory)
    processor.video_processor.save_pretrained(directory)
    return directory
