"""Complete Hugging Face directories of random GLM-4.1V and GLM-4.5V models; see `checkpoints`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import AddedToken

from tests.support.checkpoints import (
    TARGET,
    TARGET_VISION,
    LanguageShape,
    VisionShape,
    _language_fields,
    _write,
)
from tests.support.qwen_vl_checkpoints import save_processor
from tests.support.tokenizer import CHAT_TEMPLATE, build_tokenizer

_WORDS = {
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "image_token_id": "<|image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
    "video_token_id": "<|video|>",
}
_TEMPLATE = CHAT_TEMPLATE.replace(
    "<|vision_start|><|image_pad|><|vision_end|>", "<|begin_of_image|><|image|><|end_of_image|>"
).replace(
    "<|vision_start|><|video_pad|><|vision_end|>", "<|begin_of_video|><|video|><|end_of_video|>"
)
EXPERTS = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
}


def glm4v(
    directory: Path,
    shape: LanguageShape = TARGET,
    vision: VisionShape = TARGET_VISION,
    *,
    seed: int = 0,
    experts: bool = False,
) -> Path:
    """Write a GLM-4.1V checkpoint, or one of GLM-4.5V.

    Parameters
    ----------
    directory
        Created if missing.
    shape, vision
        Sizes of language model and vision tower; its window and limits of tokens are not used.
    seed
        Of the weights.
    experts
        GLM-4.5V: `EXPERTS` in each decoder layer but the first.
    """
    tokenizer = build_tokenizer(shape.text_tokens)
    tokenizer.add_tokens(
        [AddedToken(word, special=True, normalized=False) for word in _WORDS.values()],
        special_tokens=True,
    )
    text: dict[str, Any] = _language_fields(shape, tokenizer)
    del text["use_sliding_window"]
    half = shape.head_dim // 4
    text["rope_parameters"] |= {
        "partial_rotary_factor": 0.5,
        "mrope_section": [half - 2 * (half // 3), half // 3, half // 3],
    }
    fields: dict[str, Any] = {
        "text_config": text | (EXPERTS if experts else {}),
        "vision_config": {
            "depth": vision.layers,
            "hidden_size": vision.hidden,
            "num_heads": vision.heads,
            "intermediate_size": vision.intermediate,
            "out_hidden_size": shape.hidden,
        },
        "tie_word_embeddings": False,
        **{name: tokenizer.convert_tokens_to_ids(word) for name, word in _WORDS.items()},
    }
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel
        if experts:
            model = Glm4vMoeForConditionalGeneration(Glm4vMoeConfig(**fields))
        else:
            model = Glm4vForConditionalGeneration(Glm4vConfig(**fields))
    _write(directory, model, tokenizer, seed=seed, family=0, dtype=torch.float32, mixing=None)
    processor = Glm4vProcessor(
        image_processor=Glm4vImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Glm4vVideoProcessor(),
        chat_template=_TEMPLATE,
    )
    save_processor(processor, directory)
    return directory
