"""Complete Hugging Face directories of random GLM-4.1V models; see `checkpoints`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
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


def glm4v(
    directory: Path,
    shape: LanguageShape = TARGET,
    vision: VisionShape = TARGET_VISION,
    *,
    seed: int = 0,
) -> Path:
    """Write a GLM-4.1V checkpoint.

    Parameters
    ----------
    directory
        Created if missing.
    shape, vision
        Sizes of language model and vision tower; its window and limits of tokens are not used.
    seed
        Of the weights.
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
    config = Glm4vConfig(
        text_config=text,
        vision_config={
            "depth": vision.layers,
            "hidden_size": vision.hidden,
            "num_heads": vision.heads,
            "intermediate_size": vision.intermediate,
            "out_hidden_size": shape.hidden,
        },
        tie_word_embeddings=False,
        **{name: tokenizer.convert_tokens_to_ids(word) for name, word in _WORDS.items()},
    )
    with torch.random.fork_rng(devices=[]):
        model = Glm4vForConditionalGeneration(config)
    _write(directory, model, tokenizer, seed=seed, family=0, dtype=torch.float32, mixing=None)
    processor = Glm4vProcessor(
        image_processor=Glm4vImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Glm4vVideoProcessor(),
        chat_template=_TEMPLATE,
    )
    save_processor(processor, directory)
    return directory
