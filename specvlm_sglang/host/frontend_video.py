"""Frontend programs' ``sgl.video`` on the server: frames sent as an image become a video.

The frontend appends an image placeholder to the prompt and sends the frames as one image that
begins with ``video:``. Here the placeholder becomes the model's video placeholder and the frames
its video, before SGLang's processor looks at either.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import torch

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"

_STATES_TIMES = ("qwen3_vl", "qwen3_vl_moe")
"""Model types whose prompts say when each frame was; the frontend does not send that."""
_UNDERSTANDS = ("qwen2_vl", "qwen2_5_vl")

Decode = Callable[[str], np.ndarray]
"""From what the frontend sent to uint8 ``[frames, height, width, 3]``."""


def split_media(
    text: str, images: list[Any], prefix: str, decode: Decode
) -> tuple[str, list[Any], list[torch.Tensor]]:
    """Separate videos from images, and give them their placeholders.

    Parameters
    ----------
    text
        The prompt, with one image placeholder per entry of ``images``.
    images
        Images as SGLang takes them, and videos as strings.
    prefix
        How the string of a video begins.
    decode
        Reads such a string.

    Returns
    -------
    tuple
        The prompt, the images left, and the videos: uint8 ``[frames, 3, height, width]``.

    Raises
    ------
    ValueError
        Another number of placeholders than entries, or frames that cannot be read.
    """
    pieces = text.split(IMAGE)
    if len(pieces) - 1 != len(images):
        raise ValueError(
            f"the prompt has {len(pieces) - 1} image placeholders for {len(images)} images and "
            "videos"
        )
    kept, videos, out = [], [], [pieces[0]]
    for image, piece in zip(images, pieces[1:], strict=True):
        if _is_video(image, prefix):
            videos.append(torch.from_numpy(decode(image)).permute(0, 3, 1, 2).contiguous())
            out.append(VIDEO)
        else:
            kept.append(image)
            out.append(IMAGE)
        out.append(piece)
    return "".join(out), kept, videos


def _is_video(image: Any, prefix: str) -> bool:
    return isinstance(image, str) and image.startswith(prefix)


def check_model_type(model_type: str) -> None:
    """Raise ``ValueError`` for a model that cannot be given frames without their times."""
    if model_type in _STATES_TIMES:
        raise ValueError(
            f"sgl.video sends frames without their times, which a prompt of {model_type} states: "
            "send the file as a video_url"
        )
    if model_type not in _UNDERSTANDS:
        raise ValueError(
            f"sgl.video is understood with {' and '.join(_UNDERSTANDS)}, not with {model_type}: "
            "send the file as a video_url"
        )


def install(prefix: str, decode: Decode) -> None:
    """Wrap SGLang's processors in this process; idempotent.

    Parameters
    ----------
    prefix, decode
        As `split_media` takes them.
    """
    contract.require("frontend video")

    def make(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def process_mm_data_async(
            self: Any, image_data: Any, input_text: Any, request_obj: Any, *args: Any, **kwargs: Any
        ) -> Any:
            images = _listed(image_data)
            if isinstance(input_text, str) and any(_is_video(image, prefix) for image in images):
                check_model_type(self.hf_config.model_type)
                input_text, image_data, videos = split_media(input_text, images, prefix, decode)
                request_obj.video_data = [*(request_obj.video_data or []), *videos]
                request_obj.image_data = image_data
            return await original(self, image_data, input_text, request_obj, *args, **kwargs)

        return process_mm_data_async

    def refuse(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def load_mm_data(
            self: Any, prompt: Any, multimodal_tokens: Any, image_data: Any = None, **kwargs: Any
        ) -> Any:
            if any(_is_video(image, prefix) for image in _listed(image_data)):
                check_model_type(self.hf_config.model_type)
            return await original(self, prompt, multimodal_tokens, image_data=image_data, **kwargs)

        return load_mm_data

    package = "sglang.srt.multimodal.processors"
    replace_function(f"{package}.qwen_vl", "QwenVLImageProcessor.process_mm_data_async", make)
    # What the Qwen-VL processor did not understand, and that of any other family.
    replace_function(f"{package}.base_processor", "BaseMultimodalProcessor.load_mm_data", refuse)


def _listed(media: Any) -> list[Any]:
    return media if isinstance(media, list) else [media]
