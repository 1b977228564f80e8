"""Sizes of the pair, fresh models, and complete Hugging Face directories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from benchmarks.tinyvid.vocabulary import build_tokenizer

TOKEN_SIDE = 28
"""Pixels along one side of a video token: patches of 14, merged two by two."""
WINDOW = 112
"""Pixels along one side of an attention window of the vision towers.

No block of the towers attends further: SGLang 0.5.23 and transformers disagree about blocks with
full attention on videos, and agree about windows.
"""
VOCABULARY_ROWS = 544
"""Rows of the embedding tables: the tokenizer's length rounded up to a multiple of 32."""


@dataclass(frozen=True)
class Size:
    """Widths and depths of one model; the names are those of the configuration."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    vision_intermediate: int


SIZES = {
    "target": Size(256, 4, 4, 2, 768, 128, 2, 2, 256),
    "draft": Size(128, 2, 2, 1, 256, 64, 1, 1, 192),
}


def config(size: Size) -> Qwen2_5_VLConfig:
    """The transformers configuration of a model of this size."""
    tokenizer = build_tokenizer()
    token_id = tokenizer.convert_tokens_to_ids
    half = size.hidden // size.heads // 2
    sections = [half // 4, (half - half // 4) // 2, half - half // 4 - (half - half // 4) // 2]
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY_ROWS,
            "hidden_size": size.hidden,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "intermediate_size": size.intermediate,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": sections,
            },
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "bos_token_id": token_id("<|endoftext|>"),
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "num_heads": size.vision_heads,
            "intermediate_size": size.vision_intermediate,
            "out_hidden_size": size.hidden,
            "window_size": WINDOW,
            "fullatt_block_indexes": [],
            "tokens_per_second": 2,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def new_model(size: Size, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A model with fresh random weights, which follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2_5_VLForConditionalGeneration(config(size))


def save(
    directory: Path,
    model: Qwen2_5_VLForConditionalGeneration,
    *,
    min_side: int = 56,
    max_side: int = 112,
) -> Path:
    """Write weights, configurations, tokenizer, processor and chat template.

    Parameters
    ----------
    directory : Path
        Created if missing.
    model : Qwen2_5_VLForConditionalGeneration
        Written in its own dtype.
    min_side, max_side : int
        Frames are resized to an area between the squares of these, in pixels.
    """
    tokenizer = build_tokenizer()
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.pad_token_id,
    )
    for part in (model.config.text_config, model.config.vision_config):
        part.dtype = model.dtype
    model.save_pretrained(directory)
    area = {"shortest_edge": min_side**2, "longest_edge": max_side**2}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=area),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=area, cap_pixels_per_frame=False),
        chat_template=tokenizer.chat_template,
    )
    processor.save_pretrained(directory)
    processor.image_processor.save_pretrained(directory)
    processor.video_processor.save_pretrained(directory)
    return directory
