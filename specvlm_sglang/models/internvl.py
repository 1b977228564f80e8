"""InternVL 3 and 3.5: 1-D positions, a span per frame, all videos of a prompt in one item."""

from __future__ import annotations

import math
from typing import Any

import torch

from specvlm_sglang.models.configs import language_config
from specvlm_sglang.models.family import ModelFamily, Video

LANGUAGE_MODELS = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM")


class InternVL(ModelFamily):
    """Adapter for ``InternVLChatModel``, the format of OpenGVLab's own checkpoints."""

    name = "InternVL"
    architectures = ("InternVLChatModel",)

    def refusal(self, config: Any) -> str | None:
        """See `ModelFamily.refusal`."""
        found = (language_config(config).architectures or ["unknown"])[0]
        if found in LANGUAGE_MODELS:
            return None
        reasons = {
            "InternLM2ForCausalLM": "SGLang ignores videos sent to it",
            "GptOssForCausalLM": "half of its layers see a window of the prompt, and all of them "
            "attention sinks that the scores do not know",
        }
        why = reasons.get(found, "it was not tried")
        return f"its language model is {found}: {why}. It serves {', '.join(LANGUAGE_MODELS)}"

    def language_model(self, model: Any) -> Any:
        """See `ModelFamily.language_model`."""
        return model.language_model

    def encode(self, draft_model: Any, item: Any) -> torch.Tensor:
        """See `ModelFamily.encode`: SGLang's class returns ``[tiles, tokens, hidden]``."""
        features = super().encode(draft_model, item)
        return features.reshape(-1, features.shape[-1])

    def videos(self, item: Any) -> list[Video]:
        """See `ModelFamily.videos`: nothing says where one video ends and the next begins.

        Frames are square; tiled ones (``video_max_dynamic_patch``) form no grid.
        """
        spans = tuple(item.offsets)
        lengths = {last - first + 1 for first, last in spans}
        side = math.isqrt(min(lengths))
        grid = (len(spans), side, side) if lengths == {side * side} else None
        # </img> and a line's end.
        return [Video(spans, grid, trailing=2)]
