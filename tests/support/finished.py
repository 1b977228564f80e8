"""Requests of SGLang's own class that have just finished, as its scheduler would hold them."""

from __future__ import annotations

from array import array
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import (
    FINISH_LENGTH,
    Modality,
    MultimodalDataItem,
    MultimodalInputs,
    Req,
)
from sglang.srt.sampling.sampling_params import SamplingParams


def finished(rid: str = "a", **settings: Any) -> Req:
    """A request of three tokens whose answer, 7 8, ended by its length."""
    sampling = SamplingParams(max_new_tokens=2, temperature=settings.pop("temperature", 0.0))
    sampling.normalize(None)
    req = Req(rid, "", array("q", [1, 2, 3]), sampling, vocab_size=99, **settings)
    req.output_ids = array("q", [7, 8])
    req.finished_reason = FINISH_LENGTH(length=2)
    req.finished_len = 2
    return req


def with_video(req: Req, pixels: torch.Tensor | list[torch.Tensor]) -> MultimodalInputs:
    """Give ``req`` a video of two placeholders with these pixels."""
    item = MultimodalDataItem(modality=Modality.VIDEO, feature=pixels, offsets=[(0, 1)])
    item.set("video_grid_thw", torch.tensor([[1, 2, 2]]))
    req.multimodal_inputs = MultimodalInputs(mm_items=[item])
    return req.multimodal_inputs
