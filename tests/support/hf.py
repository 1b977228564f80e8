"""The transformers side: greedy answers from exactly the pixels that SGLang would see."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
)
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

Messages = Sequence[dict[str, Any]]
"""OpenAI chat messages: content is text, or parts of type text, image_url and video_url."""

ASSUMED_FPS = 24
"""What transformers assumes for frames without metadata, hence plain SGLang 0.5.23 too."""
FRAMES_PER_GRID = 2
NO_TOKEN = 2**31 - 1
"""An id outside every vocabulary, so that generation never stops at it."""


@dataclass(frozen=True)
class SampledVideo:
    """Frames of one video as SGLang samples and resizes them.

    Attributes
    ----------
    frames : Tensor
        RGB, uint8, shape (frames, 3, height, width).
    metadata : dict
        `fps` and `total_num_frames` of the file, `frames_indices` of the sample.
    """

    frames: Tensor
    metadata: dict[str, Any]

    @property
    def seconds_per_grid(self) -> float:
        """Time between two temporal grids (pairs of sampled frames), in seconds."""
        sampled = len(self.metadata["frames_indices"]) / self.metadata["total_num_frames"]
        return FRAMES_PER_GRID / float(sampled * self.metadata["fps"])

    @property
    def seconds_per_grid_in_sglang(self) -> float:
        """The same as plain SGLang 0.5.23 has it, which passes no frame rate on: 2/24."""
        return FRAMES_PER_GRID / ASSUMED_FPS


@dataclass(frozen=True)
class Prompt:
    """A rendered chat: text with placeholders, and what they stand for in order."""

    text: str
    images: list[Image.Image] = field(default_factory=list)
    videos: list[SampledVideo] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """A greedy continuation.

    Attributes
    ----------
    prompt_ids, output_ids : list of int
        Vision placeholders expanded; an end token, where one came, included.
    text : str
        The output without special tokens.
    margins : list of float
        Largest minus second largest logit at each output token.
    """

    prompt_ids: list[int]
    output_ids: list[int]
    text: str
    margins: list[float]


@cache
def _load_sglang_plugins() -> None:
    from sglang.srt.platforms import current_platform
    from sglang.srt.plugins import load_plugins

    load_plugins()
    _ = current_platform.device_type  # resolves the platform, which prepares the process


def sample_video(source: str | Path) -> SampledVideo:
    """Decode, sample and resize a video with SGLang's own functions.

    Parameters
    ----------
    source : str or Path
        Path, ``file://`` or ``data:`` URL.

    Raises
    ------
    ValueError
        If the file is no video or has too few frames.
    """
    _load_sglang_plugins()
    from sglang.srt.multimodal.processors.qwen_vl import preprocess_video
    from sglang.srt.utils.common import load_video

    decoder = load_video(str(source), use_gpu=False)
    frames, metadata = asyncio.run(preprocess_video(decoder, video_config={}))
    return SampledVideo(frames, metadata)


def load_image(source: str | Path) -> Image.Image:
    """Decode an image with SGLang's own function; sources as in `sample_video`."""
    from sglang.srt.utils.common import load_image as sglang_load_image

    image: Image.Image = sglang_load_image(str(source), gpu_image_decode=False)[0]
    return image


@lru_cache(maxsize=4)
def load_model(directory: Path) -> PreTrainedModel:
    """The checkpoint's transformers model in float32; the last few are kept."""
    vision = hasattr(AutoConfig.from_pretrained(directory), "vision_config")
    auto = Qwen2_5_VLForConditionalGeneration if vision else AutoModelForCausalLM
    return auto.from_pretrained(directory, dtype=torch.float32).eval()


@lru_cache(maxsize=8)
def _processor(directory: Path) -> Any:
    vision = hasattr(AutoConfig.from_pretrained(directory), "vision_config")
    return (AutoProcessor if vision else AutoTokenizer).from_pretrained(directory)


def render(directory: Path, messages: Messages) -> Prompt:
    """Apply the checkpoint's chat template to OpenAI messages and load their media."""
    images: list[Image.Image] = []
    videos: list[SampledVideo] = []
    rendered = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            parts = []
            for part in content:
                if part["type"] == "image_url":
                    images.append(load_image(part["image_url"]["url"]))
                    part = {"type": "image"}
                elif part["type"] == "video_url":
                    videos.append(sample_video(part["video_url"]["url"]))
                    part = {"type": "video"}
                parts.append(part)
            content = parts
        rendered.append({"role": message["role"], "content": content})
    text = _processor(directory).apply_chat_template(
        rendered, tokenize=False, add_generation_prompt=True
    )
    return Prompt(text, images, videos)


def model_inputs(directory: Path, prompt: Prompt, *, exact: bool = True) -> dict[str, Any]:
    """Tensors for the model, from the checkpoint's own processor.

    Parameters
    ----------
    directory : Path
        Of the checkpoint.
    prompt : Prompt
        See `render`.
    exact : bool
        Pass the sampled frames' rate on; if False, leave it out as plain SGLang does.
    """
    media: dict[str, Any] = {}
    if prompt.images:
        media["images"] = prompt.images
    if prompt.videos:
        media["videos"] = [video.frames for video in prompt.videos]
        if exact:
            media["videos_kwargs"] = {"video_metadata": [video.metadata for video in prompt.videos]}
    return dict(_processor(directory)(text=[prompt.text], return_tensors="pt", **media))


def positions_after_the_largest(
    self: Qwen2_5_VLModel,
    input_ids: Tensor,
    mm_token_type_ids: Tensor,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    second_per_grid_ts: Sequence[float] | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """M-RoPE ids of one prompt: each part starts one after the largest id before it.

    That is SGLang's rule, and the Qwen2-VL paper's (section 2.1). transformers 5.19 starts the
    text after a video at the video's spatial extent instead, even where its temporal ids reach
    further.
    """
    merge = self.config.vision_config.spatial_merge_size
    grids = {
        1: iter(image_grid_thw if image_grid_thw is not None else ()),
        2: iter(video_grid_thw if video_grid_thw is not None else ()),
    }
    seconds = iter(second_per_grid_ts if second_per_grid_ts is not None else ())
    parts: list[Tensor] = []
    start = 0
    for kind, group in groupby(mm_token_type_ids[0].tolist()):
        if kind == 0:
            ids = torch.arange(len(list(group))).expand(3, -1) + start
        else:
            interval = 1.0
            if kind == 2:
                interval = self.config.vision_config.tokens_per_second * float(next(seconds))
            ids = self.get_vision_position_ids(start, next(grids[kind]), 1, merge, interval)
        parts.append(ids)
        start = int(ids.max()) + 1
    length = input_ids.shape[1]
    return torch.cat(parts, dim=1).view(3, 1, length), torch.tensor([[start - length]])


def rope_index(directory: Path, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """M-RoPE ids of a Qwen2.5-VL prompt, shape (3, 1, tokens), and what decoding adds, (1, 1)."""
    return positions_after_the_largest(load_model(directory).model, **inputs)


@contextmanager
def _conventions(exact: bool) -> Iterator[None]:
    """Within: position ids by the paper's rule; vision attention per grid, or as SGLang has it."""
    seqlens = partial(modeling_qwen2_5_vl.get_vision_attention_seqlens, merge_temporal=not exact)
    with (
        mock.patch.object(Qwen2_5_VLModel, "get_rope_index", positions_after_the_largest),
        mock.patch.object(modeling_qwen2_5_vl, "get_vision_attention_seqlens", seqlens),
    ):
        yield


@torch.no_grad()
def greedy(
    directory: Path,
    prompt: Messages | Sequence[int],
    max_new_tokens: int,
    *,
    exact: bool = True,
    ignore_eos: bool = False,
) -> Answer:
    """Greedy continuation by transformers' ``generate`` in float32.

    Position ids follow `positions_after_the_largest`, whose difference from transformers' own
    shows on longer videos only.

    Parameters
    ----------
    directory : Path
        Checkpoint, Qwen2.5-VL or a text model.
    prompt : messages or sequence of int
        Chat messages, or token ids of a text prompt.
    max_new_tokens : int
        At most so many output tokens.
    exact : bool
        True: full attention of the vision tower stays within one temporal grid, and temporal
        position ids follow the frame rate, as the model was trained. False: SGLang 0.5.23's own
        way (the whole video attends to itself, 2/24 seconds a grid).
    ignore_eos : bool
        Go on after an end token.
    """
    directory = Path(directory)
    model = load_model(directory)
    if prompt and isinstance(prompt[0], int):
        inputs: dict[str, Any] = {"input_ids": torch.tensor([list(prompt)])}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    else:
        messages = cast(Messages, prompt)
        inputs = model_inputs(directory, render(directory, messages), exact=exact)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=NO_TOKEN if ignore_eos else model.generation_config.eos_token_id,
        pad_token_id=model.generation_config.pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    with _conventions(exact):
        result = model.generate(**inputs, generation_config=settings)
    length = inputs["input_ids"].shape[1]
    output = result.sequences[0, length:].tolist()
    best = torch.cat(result.logits).topk(2).values
    return Answer(
        prompt_ids=inputs["input_ids"][0].tolist(),
        output_ids=output,
        text=_processor(directory).decode(output, skip_special_tokens=True),
        margins=(best[:, 0] - best[:, 1]).tolist(),
    )
