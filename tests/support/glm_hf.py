"""GLM-V on the transformers side: frames as SGLang's processor samples them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.support import hf
from tests.support.family_hf import Reference
from tests.support.hf import Messages, SampledVideo


class GlmReference(Reference):
    """Placeholders of videos are images' in the prompt; which are which says where they stand.

    transformers 5.19 takes all of them for both, and so refuses a prompt with an image and a video.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.model.model.get_placeholder_mask = self._masks

    def _masks(
        self, input_ids: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Bool ``[1, tokens, 1]`` of images and of videos."""
        is_video = torch.zeros_like(input_ids, dtype=torch.bool)
        is_video[0, self.video_places(input_ids[0].tolist())] = True
        is_visual = input_ids == self.model.config.image_token_id
        return (is_visual & ~is_video)[..., None], is_video[..., None]

    def video_places(self, served_ids: list[int]) -> torch.Tensor:
        """See `Reference.video_places`."""
        ids, config = torch.tensor(served_ids), self.model.config
        begun = (ids == config.video_start_token_id).cumsum(0)
        ended = (ids == config.video_end_token_id).cumsum(0)
        return torch.nonzero((ids == config.image_token_id) & (begun > ended))[:, 0]

    def inputs(self, messages: Messages, served_ids: list[int]) -> dict[str, Any]:
        """See `Reference.inputs`."""
        with mock.patch.object(hf, "sample_video", self._sample):
            return super().inputs(messages, served_ids)

    def _sample(self, source: Any) -> SampledVideo:
        from sglang.srt.multimodal.processors.glm4v import (
            glm_processor_video_config,
            glm_sample_and_decode_sync,
        )
        from sglang.srt.utils.common import load_video

        hf._load_sglang_plugins()
        processor = self.processor.video_processor
        frames, metadata = glm_sample_and_decode_sync(
            load_video(str(source), use_gpu=False), glm_processor_video_config(processor), processor
        )
        return SampledVideo(torch.as_tensor(frames).permute(0, 3, 1, 2), metadata)
