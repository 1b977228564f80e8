"""LLaVA-OneVision on the transformers side: the same frames and images as SGLang is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    GenerationConfig,
    LlavaOnevisionForConditionalGeneration,
)

from specvlm_sglang.host.media.reader import PyAVReader
from specvlm_sglang.host.media.sources import resolve
from tests.support.hf import Answer, Messages, load_image

# The served model's own rule, spelled out: two frames a second, 4 to 32, from first to last.
FRAMES_PER_SECOND, FEWEST, MOST = 2, 4, 32


@dataclass(frozen=True)
class Prompt:
    """A rendered chat: text with placeholders, and what they stand for in order."""

    text: str
    images: list[Image.Image] = field(default_factory=list)
    videos: list[torch.Tensor] = field(default_factory=list)


def sample_video(source: str | Path) -> torch.Tensor:
    """Frames of a file, uint8 ``[frames, 3, height, width]``."""
    reader = PyAVReader(resolve(str(source)))
    total = len(reader)
    wanted = int(total / reader.get_avg_fps() * FRAMES_PER_SECOND)
    wanted = min(max(wanted, FEWEST), MOST, total)
    indices = sorted({(total - 1) * step // max(wanted - 1, 1) for step in range(wanted)})
    return torch.from_numpy(reader.get_batch(indices).frames).permute(0, 3, 1, 2)


@lru_cache(maxsize=6)
def load_model(directory: Path) -> LlavaOnevisionForConditionalGeneration:
    """The checkpoint's model in float32, with attention that can be read out."""
    return LlavaOnevisionForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@lru_cache(maxsize=6)
def load_processor(directory: Path) -> Any:
    """The checkpoint's processor."""
    return AutoProcessor.from_pretrained(directory)


def render(directory: Path, messages: Messages) -> Prompt:
    """Apply the checkpoint's chat template to OpenAI messages and load their media."""
    images: list[Image.Image] = []
    videos: list[torch.Tensor] = []
    rendered = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            # What transformers' documentation asks of its users.
            content = [{"type": "text", "text": content}]
        parts = []
        for part in content:
            if part["type"] == "image_url":
                images.append(load_image(part["image_url"]["url"]))
                part = {"type": "image"}
            elif part["type"] == "video_url":
                videos.append(sample_video(part["video_url"]["url"]))
                part = {"type": "video"}
            parts.append(part)
        rendered.append({"role": message["role"], "content": parts})
    text = load_processor(directory).apply_chat_template(
        rendered, tokenize=False, add_generation_prompt=True
    )
    return Prompt(text, images, videos)


def model_inputs(directory: Path, prompt: Prompt) -> dict[str, Any]:
    """Tensors for the model; images are nested per prompt, as ``apply_chat_template`` does."""
    media: dict[str, Any] = {}
    if prompt.images:
        media["images"] = [prompt.images]
    if prompt.videos:
        media["videos"] = [prompt.videos]
    return dict(load_processor(directory)(text=[prompt.text], return_tensors="pt", **media))


@torch.no_grad()
def greedy(directory: Path, messages: Sequence[dict[str, Any]], max_new_tokens: int) -> Answer:
    """Greedy continuation by transformers' ``generate`` in float32."""
    model = load_model(directory)
    inputs = model_inputs(directory, render(directory, messages))
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=model.generation_config.pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    result = model.generate(**inputs, generation_config=settings)
    length = inputs["input_ids"].shape[1]
    output = result.sequences[0, length:].tolist()
    best = torch.cat(result.logits).topk(2).values
    return Answer(
        prompt_ids=inputs["input_ids"][0].tolist(),
        output_ids=output,
        text=load_processor(directory).decode(output, skip_special_tokens=True),
        margins=(best[:, 0] - best[:, 1]).tolist(),
    )
