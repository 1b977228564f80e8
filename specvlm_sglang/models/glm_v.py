"""GLM-4.1V and GLM-4.5V: M-RoPE positions, a span per pair of frames, its time as text after it."""

from __future__ import annotations

from typing import Any

from specvlm_sglang.models.family import Video
from specvlm_sglang.models.qwen3_vl import Qwen3VL


class GlmV(Qwen3VL):
    """Adapter for ``Glm4vForConditionalGeneration`` and its sibling with experts.

    Placeholders of videos are those of images, within ``<|begin_of_video|>`` and its end.
    """

    name = "GLM-V"
    architectures = ("Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration")

    def videos(self, item: Any) -> list[Video]:
        """See `ModelFamily.videos`: an ``<|end_of_image|>`` follows a span, then a time."""
        return [video._replace(trailing=1) for video in super().videos(item)]
