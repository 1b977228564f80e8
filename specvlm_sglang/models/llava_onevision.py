"""LLaVA-OneVision: one-dimensional positions, one span per video, a newline at each video's end."""

from __future__ import annotations

import re
from typing import Any

from specvlm_sglang.models.family import ModelFamily, Video

LMMS_LAB_ARCHITECTURE = "LlavaQwenForCausalLM"
# Published sizes by the language model's width.
_SIZES = {896: "0.5b", 3584: "7b", 8192: "72b"}


def converted_checkpoint(path: str, hidden_size: int | None) -> str:
    """Hub name of the Hugging Face form of one of the lmms-lab checkpoints.

    Parameters
    ----------
    path
        Where the original is, a hub name or a directory.
    hidden_size
        Of its language model, which tells the size where the name does not.
    """
    name = path.rstrip("/").rsplit("/", 1)[-1].removesuffix("-sft")
    if not re.fullmatch(r"llava-onevision-qwen2-(0\.5b|7b|72b)-(si|ov|ov-chat)", name):
        name = f"llava-onevision-qwen2-{_SIZES.get(hidden_size or 0, '7b')}-ov"
    return f"llava-hf/{name}-hf"


class LlavaOnevision(ModelFamily):
    """Adapter for the class in `specvlm_sglang.models.native.llava_onevision`."""

    name = "LLaVA-OneVision"
    architectures = ("LlavaOnevisionForConditionalGeneration",)

    def videos(self, item: Any) -> list[Video]:
        """See `ModelFamily.videos`: the newline that ends a video is never pruned."""
        ((first, last),) = item.offsets
        frames, rows, columns = item.video_grid
        return [Video(((first, last - 1),), (frames, rows, columns), trailing=1)]
