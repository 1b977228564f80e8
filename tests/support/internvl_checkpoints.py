"""Random InternVL models in OpenGVLab's own format, which transformers cannot write.

The weights are those of transformers' model, which lies beside the checkpoint, renamed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import InternVLConfig, InternVLForConditionalGeneration
from transformers.tokenization_utils_base import AddedToken

from tests.support.checkpoints import TARGET, LanguageShape, _language_fields, _write
from tests.support.qwen_vl_checkpoints import EXPERTS
from tests.support.tokenizer import build_tokenizer

TILE, PATCH = 448, 56
"""Sides in pixels. SGLang makes tiles of 448 whatever a checkpoint says; large patches keep 32
frames at 512 tokens."""
TOKENS_PER_TILE = (TILE // PATCH // 2) ** 2
HF_SUFFIX = "-hf"


@dataclass(frozen=True)
class TowerShape:
    """Sizes of an InternViT tower."""

    hidden: int = 64
    layers: int = 3
    heads: int = 2


TARGET_TOWER = TowerShape()
DRAFT_TOWER = TowerShape(hidden=32, layers=2, heads=1)
LANGUAGES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}

_VISION_NAMES = {
    "model.vision_tower.": "vision_model.",
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
    "embeddings.position_embeddings": "embeddings.position_embedding",
    "encoder.layer.": "encoder.layers.",
    "attention.projection_layer": "attn.proj",
    "lambda_1": "ls1",
    "lambda_2": "ls2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
_PROJECTOR_NAMES = {"layer_norm": "mlp1.0", "linear_1": "mlp1.1", "linear_2": "mlp1.3"}


def internvl(
    directory: Path,
    shape: LanguageShape = TARGET,
    tower: TowerShape = TARGET_TOWER,
    *,
    seed: int = 0,
    language: str = "qwen3",
) -> Path:
    """Write an InternVL checkpoint.

    Parameters
    ----------
    directory
        Created if missing. transformers' model goes beside it, with `HF_SUFFIX`.
    shape, tower
        Sizes.
    seed
        Of the weights.
    language
        One of `LANGUAGES`, by transformers' ``model_type``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(shape.text_tokens)
    tokenizer.add_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in ("<img>", "</img>", "<IMG_CONTEXT>")
        ],
        special_tokens=True,
    )
    text: dict[str, Any] = {
        **_language_fields(shape, tokenizer),
        "model_type": language,
        "tie_word_embeddings": False,
    }
    if language != "qwen2":
        text["head_dim"] = shape.head_dim
    if language == "qwen3_moe":
        text |= EXPERTS
    config = InternVLConfig(
        vision_config={
            "hidden_size": tower.hidden,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "intermediate_size": 2 * tower.hidden,
            "attention_bias": True,
            "use_qk_norm": False,
            "norm_type": "layer_norm",
            "image_size": [TILE, TILE],
            "patch_size": [PATCH, PATCH],
            "layer_scale_init_value": 0.5,
            "use_mean_pooling": True,
        },
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=TOKENS_PER_TILE,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        # Its default, True, would make of a random model one that repeats its last token.
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        model = InternVLForConditionalGeneration(config)
    beside = directory.with_name(directory.name + HF_SUFFIX)
    _write(beside, model, tokenizer, seed=seed, family=0, dtype=torch.float32, mixing=None)
    model.generation_config.save_pretrained(directory)
    weights = _published(model.state_dict())
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(_published_config(text, tower), indent=1))
    tokenizer.save_pretrained(directory)
    return directory


def _published(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names and shapes of the published files: one tensor for queries, keys and values."""
    renamed = {}
    for name, tensor in weights.items():
        if ".attention.k_proj" in name or ".attention.v_proj" in name:
            continue
        if name.startswith("model.language_model."):
            new = "language_model.model." + name.removeprefix("model.language_model.")
        elif name.startswith("lm_head."):
            new = f"language_model.{name}"
        elif name.startswith("model.multi_modal_projector."):
            part, kind = name.split(".")[2:]
            new = f"{_PROJECTOR_NAMES[part]}.{kind}"
        else:
            new = name
            for old, published in _VISION_NAMES.items():
                new = new.replace(old, published)
        if ".attention.q_proj" in new:
            new = new.replace("attention.q_proj", "attn.qkv")
            parts = [
                weights[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")
            ]
            tensor = torch.cat(parts)
        renamed |= {new: tensor} if ".experts." not in new else _expert_by_expert(new, tensor)
    return {name: tensor.contiguous().clone() for name, tensor in renamed.items()}


def _expert_by_expert(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors of each expert; transformers has one, ``[experts, outputs, inputs]``."""
    prefix, _, kind = name.rpartition(".")
    parts = {"gate_up_proj": ("gate_proj", "up_proj")}.get(kind, (kind,))
    return {
        f"{prefix}.{expert}.{part}.weight": half
        for expert, weights in enumerate(tensor)
        for part, half in zip(parts, weights.chunk(len(parts)), strict=True)
    }


def _published_config(text: dict[str, Any], tower: TowerShape) -> dict[str, Any]:
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "dtype": "float32",
        "downsample_ratio": 0.5,
        "force_image_size": TILE,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "tie_word_embeddings": False,
        "llm_config": {
            **text,
            "architectures": [LANGUAGES[text["model_type"]]],
            "rope_theta": text["rope_parameters"]["rope_theta"],
        },
        "vision_config": {
            "model_type": "intern_vit_6b",
            "architectures": ["InternVisionModel"],
            "hidden_size": tower.hidden,
            "intermediate_size": 2 * tower.hidden,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
            "patch_size": PATCH,
            "image_size": TILE,
            "qkv_bias": True,
            "qk_normalization": False,
            "norm_type": "layer_norm",
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "use_flash_attn": False,
            "initializer_factor": 1.0,
            "drop_path_rate": 0.0,
            "dropout": 0.0,
        },
    }
