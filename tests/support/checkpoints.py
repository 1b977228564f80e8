"""Complete Hugging Face directories of random models: configuration, weights, tokenizer, processor.

The files are written by the transformers classes themselves, so that both SGLang and transformers
read them as they read published checkpoints.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from tests.support.tokenizer import CHAT_TEMPLATE, build_tokenizer, speakable_ids
from tests.support.weights import Mixing, randomise

PIXELS_PER_TOKEN = 28 * 28
"""Pixels of one vision token: patches of 14, merged two by two."""


@dataclass(frozen=True)
class LanguageShape:
    """Sizes of a Qwen2 language model.

    Attributes
    ----------
    hidden, layers, heads, kv_heads, intermediate : int
        Width, depth, query heads, key/value heads and MLP width.
    text_tokens : int
        Byte-level BPE tokens of the tokenizer, special tokens not counted.
    vocab_padding : int
        Rows of the embedding and output tables beyond the tokenizer's length, which published
        Qwen checkpoints have too (and more of them the larger the model).
    """

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 256
    text_tokens: int = 448
    vocab_padding: int = 0

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class VisionShape:
    """Sizes of a Qwen2.5-VL vision tower and the pixel limits of its preprocessors.

    Attributes
    ----------
    hidden, layers, heads, intermediate : int
        Width, depth, heads and MLP width; the last layer attends fully, the others in windows.
    window : int
        Side of an attention window in pixels; a multiple of 28.
    min_tokens, max_tokens : int
        Vision tokens per image or pair of frames, at least and at most.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 2
    intermediate: int = 128
    window: int = 56
    min_tokens: int = 4
    max_tokens: int = 16


TARGET = LanguageShape()
DRAFT = LanguageShape(hidden=64, layers=2, heads=2, kv_heads=1, intermediate=128)
TARGET_VISION = VisionShape()
DRAFT_VISION = VisionShape(hidden=32, layers=2, heads=1, intermediate=64)

M150 = LanguageShape(768, 16, 12, 4, 2560, vocab_padding=16384 - 462)
"""About 150 million parameters, for benchmarks."""
M350 = LanguageShape(1024, 24, 16, 4, 3584, vocab_padding=16384 - 462)
"""About 370 million parameters, for benchmarks."""


def qwen2_5_vl(
    directory: Path,
    shape: LanguageShape = TARGET,
    vision: VisionShape = TARGET_VISION,
    *,
    seed: int = 0,
    family: int = 0,
    dtype: torch.dtype = torch.float32,
    mixing: Mixing | None = None,
) -> Path:
    """Write a Qwen2.5-VL checkpoint.

    Parameters
    ----------
    directory : Path
        Created if missing.
    shape, vision : LanguageShape, VisionShape
        Sizes of the two towers.
    seed : int
        Of the weights.
    family : int
        Models of one family agree on part of their greedy tokens (see `weights`).
    dtype : torch.dtype
        Of the stored weights.
    mixing : Mixing, optional
        How much the context weighs against the current token.

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
    token_id = tokenizer.convert_tokens_to_ids
    quarter = shape.head_dim // 8
    half = shape.head_dim // 2
    sections = [quarter, (half - quarter) // 2, (half - quarter) - (half - quarter) // 2]
    language = _language_fields(shape, tokenizer)
    language["rope_parameters"] |= {"mrope_section": sections}
    config = Qwen2_5_VLConfig(
        text_config=language,
        vision_config={
            "depth": vision.layers,
            "hidden_size": vision.hidden,
            "num_heads": vision.heads,
            "intermediate_size": vision.intermediate,
            "out_hidden_size": shape.hidden,
            "window_size": vision.window,
            "fullatt_block_indexes": [vision.layers - 1],
            "tokens_per_second": 2,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        model = Qwen2_5_VLForConditionalGeneration(config)
    _write(directory, model, tokenizer, seed=seed, family=family, dtype=dtype, mixing=mixing)
    size = {
        "shortest_edge": vision.min_tokens * PIXELS_PER_TOKEN,
        "longest_edge": vision.max_tokens * PIXELS_PER_TOKEN,
    }
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(directory)
    processor.image_processor.save_pretrained(directory)
    processor.video_processor.save_pretrained(directory)
    return directory


def qwen2_text(
    directory: Path,
    shape: LanguageShape = TARGET,
    *,
    seed: int = 0,
    family: int = 0,
    dtype: torch.dtype = torch.float32,
    mixing: Mixing | None = None,
) -> Path:
    """Write a Qwen2 text checkpoint; see `qwen2_5_vl` for the parameters and errors."""
    tokenizer = build_tokenizer(shape.text_tokens)
    with torch.random.fork_rng(devices=[]):
        model = Qwen2ForCausalLM(text_config(shape, tokenizer))
    _write(directory, model, tokenizer, seed=seed, family=family, dtype=dtype, mixing=mixing)
    tokenizer.save_pretrained(directory)
    return directory


def draft_of_two_heads(directory: Path) -> Path:
    """Write a draft of which each of two ranks takes one head of the vision tower."""
    vision = replace(DRAFT_VISION, heads=2)
    return qwen2_5_vl(directory / "vl-draft-tp", DRAFT, vision, seed=1)


def cut(checkpoint: Path, directory: Path, missing: int = 100) -> Path:
    """A copy of a checkpoint whose weights end too early, by so many bytes."""
    shutil.copytree(checkpoint, directory)
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-missing])
    return directory


def text_config(shape: LanguageShape, tokenizer: Qwen2Tokenizer | None = None) -> Qwen2Config:
    """Configuration of the text model of this shape; its tokenizer is built if not given."""
    tokenizer = tokenizer or build_tokenizer(shape.text_tokens)
    return Qwen2Config(**_language_fields(shape, tokenizer), tie_word_embeddings=False)


def _language_fields(shape: LanguageShape, tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    sizes = asdict(shape)
    for name in ("hidden", "layers", "heads", "kv_heads", "intermediate"):
        if sizes[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {sizes[name]}")
    if shape.hidden % shape.heads or shape.head_dim % 16:
        raise ValueError(
            f"hidden / heads must be a multiple of 16, got {shape.hidden} / {shape.heads}"
        )
    if shape.heads % shape.kv_heads:
        raise ValueError(f"kv_heads must divide heads ({shape.heads}), got {shape.kv_heads}")
    return {
        "vocab_size": len(tokenizer) + shape.vocab_padding,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "use_sliding_window": False,
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _write(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: Qwen2Tokenizer,
    *,
    seed: int,
    family: int,
    dtype: torch.dtype,
    mixing: Mixing | None,
) -> None:
    speakable = [*speakable_ids(tokenizer), tokenizer.eos_token_id]
    randomise(
        model,
        speakable=speakable,
        sample=tokenizer(CHAT_TEMPLATE[:400]).input_ids,
        vocabulary=len(tokenizer),
        seed=seed,
        family=family,
        mixing=mixing or Mixing(),
    )
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.pad_token_id,
    )
    model.to(dtype).save_pretrained(directory)
