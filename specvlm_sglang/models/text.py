"""Text models: nothing to prune, but a plain draft pair runs through the same path."""

from __future__ import annotations

from typing import Any

import torch


class TextOnly:
    """Adapter for text pairs; useful to check a draft without vision."""

    name = "text"
    architectures = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM")

    def encode(self, draft_model: Any, item: Any) -> torch.Tensor:
        """Text models have no visual inputs."""
        raise ValueError("a text model cannot encode images or videos")

    def video_grid(self, item: Any, spatial_merge: int) -> tuple[int, int, int] | None:
        """See `ModelFamily.video_grid`."""
        return None

    def prompt_positions(
        self, mm_input: Any, length: int, device: torch.device
    ) -> torch.Tensor | None:
        """See `ModelFamily.prompt_positions`."""
        return None
