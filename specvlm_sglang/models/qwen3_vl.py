"""Qwen3-VL, dense and mixture of experts: a span per pair of frames, its time as text between."""

from __future__ import annotations

from typing import Any

from specvlm_sglang.models.family import Video
from specvlm_sglang.models.qwen2_5_vl import Qwen25VL


class Qwen3VL(Qwen25VL):
    """Adapter for ``Qwen3VLForConditionalGeneration`` and its sibling with experts.

    Any size drafts for any other. Features are wider than the embedding: deepstack features of
    ``len(vision_config.deepstack_visual_indexes)`` decoder layers follow.
    """

    name = "Qwen3-VL"
    architectures = ("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration")

    def videos(self, item: Any) -> list[Video]:
        """See `ModelFamily.videos`: a video has as many spans as its grid has frames.

        A ``<|vision_end|>`` ends each of them, and one more ends the video.
        """
        merge, spans, found = self.spatial_merge, list(item.offsets), []
        for frames, rows, columns in item.video_grid_thw.reshape(-1, 3).tolist():
            grid = (frames, rows // merge, columns // merge)
            own, spans = tuple(spans[:frames]), spans[frames:]
            lengths = [last - first + 1 for first, last in own]
            if lengths != frames * [grid[1] * grid[2]]:
                raise ValueError(
                    f"a video of {grid[0]} x {grid[1]} x {grid[2]} tokens has spans of "
                    f"{', '.join(map(str, lengths)) or 'no'} tokens in the prompt"
                )
            found.append(Video(own, grid, trailing=2))
        return found
