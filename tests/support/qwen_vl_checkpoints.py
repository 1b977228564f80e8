"""Complete Hugging Face directories of random Qwen2-VL and Qwen3-VL models; see `checkpoints`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedModel,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests.support.checkpoints import (
    DRAFT_VISION,
    TARGET,
    TARGET_VISION,
    LanguageShape,
    VisionShape,
    _language_fields,
    _write,
)
from tests.support.tokenizer import CHAT_TEMPLATE, build_tokenizer

DEEPSTACK_LAYERS = (0, 1, 2)
"""Of the tower, whose outputs go to as many decoder layers; SGLang's MoE class knows three only."""
QWEN3_TARGET_VISION = VisionShape(layers=4)
QWEN3_DRAFT_VISION = VisionShape(DRAFT_VISION.hidden, 4, DRAFT_VISION.heads, 64)
EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
}


def qwen3_vl(
    directory: Path,
    shape: LanguageShape = TARGET,
    vision: VisionShape = QWEN3_TARGET_VISION,
    *,
    seed: int = 0,
    experts: bool = False,
) -> Path:
    """Write a Qwen3-VL checkpoint.

    Parameters
    ----------
    directory
        Created if missing.
    shape, vision
        Sizes of language model and vision tower; its window is not used.
    seed
        Of the weights; all belong to one `weights` family.
    experts
        A mixture of `EXPERTS` in each decoder layer, in the layout of the published files.
    """
    tokenizer = build_tokenizer(shape.text_tokens)
    third = shape.head_dim // 6
    text = _language_fields(shape, tokenizer) | {"head_dim": shape.head_dim}
    text["rope_parameters"] |= {
        "mrope_section": [shape.head_dim // 2 - 2 * third, third, third],
        "mrope_interleaved": True,
    }
    fields: dict[str, Any] = {
        "text_config": text | (EXPERTS if experts else {}) | {"tie_word_embeddings": False},
        "vision_config": {
            "depth": vision.layers,
            "hidden_size": vision.hidden,
            "num_heads": vision.heads,
            "intermediate_size": vision.intermediate,
            "out_hidden_size": shape.hidden,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": list(DEEPSTACK_LAYERS),
        },
        "tie_word_embeddings": False,
        **vision_ids(tokenizer),
    }
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel
        if experts:
            model = Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(**fields))
        else:
            model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**fields))
    _write(directory, model, tokenizer, seed=seed, family=0, dtype=torch.float32, mixing=None)
    if experts:
        _publish_experts(directory / "model.safetensors")
    token = 32 * 32
    limits = {"shortest_edge": vision.min_tokens * token}
    image_size = limits | {"longest_edge": vision.max_tokens * token}
    # Of a whole video here.
    video_size = limits | {"longest_edge": 16 * vision.max_tokens * token}
    grey = [0.5] * 3
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size=image_size, patch_size=16, image_mean=grey, image_std=grey
        ),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=video_size, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )
    save_processor(processor, directory)
    return directory


QWEN2_VL_SIZE = {"shortest_edge": 4 * 28 * 28, "longest_edge": 1280 * 28 * 28}
"""Pixels of an image; SGLang uses these whatever a checkpoint of Qwen2-VL says."""


def qwen2_vl(
    directory: Path,
    shape: LanguageShape = TARGET,
    vision: VisionShape = TARGET_VISION,
    *,
    seed: int = 0,
) -> Path:
    """Write a Qwen2-VL checkpoint; see `qwen3_vl` for the parameters."""
    tokenizer = build_tokenizer(shape.text_tokens)
    text = _language_fields(shape, tokenizer)
    third = shape.head_dim // 6
    text["rope_parameters"] |= {"mrope_section": [shape.head_dim // 2 - 2 * third, third, third]}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config={
            "depth": vision.layers,
            "embed_dim": vision.hidden,
            "hidden_size": shape.hidden,
            "num_heads": vision.heads,
            "mlp_ratio": vision.intermediate // vision.hidden,
            "in_chans": 3,
        },
        tie_word_embeddings=False,
        **vision_ids(tokenizer),
    )
    with torch.random.fork_rng(devices=[]):
        model = Qwen2VLForConditionalGeneration(config)
    _write(directory, model, tokenizer, seed=seed, family=0, dtype=torch.float32, mixing=None)
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=QWEN2_VL_SIZE),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=QWEN2_VL_SIZE, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )
    save_processor(processor, directory)
    return directory


def vision_ids(tokenizer: Qwen2Tokenizer) -> dict[str, int]:
    """The configuration's ids of what surrounds and stands for images and videos."""
    words = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {name: tokenizer.convert_tokens_to_ids(word) for name, word in words.items()}


def save_processor(processor: Any, directory: Path) -> None:
    """Write a processor, and its parts in files of their own as published checkpoints have them."""
    for part in (processor, processor.image_processor, processor.video_processor):
        part.save_pretrained(directory)


def _publish_experts(file: Path) -> None:
    """Store expert weights as ``[experts, inputs, outputs]``; transformers writes the transpose."""
    tensors = {
        name: tensor.transpose(1, 2).contiguous() if ".experts." in name else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
