"""Text models: nothing to prune, but a plain draft pair runs through the same path."""

from __future__ import annotations

from typing import Any

import torch

from specvlm_sglang.models.family import ModelFamily, Video


class TextOnly(ModelFamily):
    """Adapter for text pairs; useful to check a draft without vision."""

    name = "text"
    architectures = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM")

    def encode(self, draft_model: Any, item: Any) -> torch.Tensor:
        """Text models have no visual inputs."""
        raise ValueError("a text model cannot encode images or videos")

    def videos(self, item: Any) -> list[Video]:
        """Text models have no videos."""
        return []
