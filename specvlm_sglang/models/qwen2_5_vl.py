"""Qwen2.5-VL: M-RoPE positions, one span per video, features in grid order."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from specvlm_sglang.copies import to_device
from specvlm_sglang.models.family import ModelFamily, Video, mrope_delta


class Qwen25VL(ModelFamily):
    """Adapter for ``Qwen2_5_VLForConditionalGeneration``."""

    name = "Qwen2.5-VL"
    mrope = True
    architectures: ClassVar[tuple[str, ...]] = ("Qwen2_5_VLForConditionalGeneration",)

    def videos(self, item: Any) -> list[Video]:
        """See `ModelFamily.videos`: each video has one span and one row of ``video_grid_thw``."""
        merge = self.spatial_merge
        grids = item.video_grid_thw.reshape(-1, 3).tolist()
        seconds = getattr(item, "second_per_grid_ts", None)
        known = [] if seconds is None else torch.as_tensor(seconds).reshape(-1).tolist()
        if len(known) != len(grids):
            known = [None] * len(grids)
        return [
            Video((span,), (frames, rows // merge, columns // merge), 0, per_grid)
            for span, (frames, rows, columns), per_grid in zip(
                item.offsets, grids, known, strict=True
            )
        ]

    def prompt_positions(
        self, mm_input: Any, length: int, device: torch.device
    ) -> torch.Tensor | None:
        """See `ModelFamily.prompt_positions`."""
        if mm_input is None or mm_input.mrope_positions is None:
            return torch.arange(length, device=device).expand(3, -1)
        positions = to_device(mm_input.mrope_positions.long(), device)
        known = positions.shape[1]
        if known >= length:
            return positions[:, :length]
        delta = mrope_delta(mm_input)
        generated = torch.arange(known + delta, length + delta, device=device)
        return torch.cat([positions, generated.expand(3, -1)], dim=1)
