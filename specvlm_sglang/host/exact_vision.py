"""Qwen2.5-VL videos as transformers computes them (`--specvlm-exact-vision`).

SGLang 0.5.23 differs in two places, and so in the features and positions of every clip with more
than one temporal grid:

- the vision tower's full-attention blocks see one block per video (t * h * w patches) instead of
  one per temporal grid (h * w, t times);
- the processor is called without the sampled frames' rate, so ``second_per_grid_ts`` is 2/24
  whatever the clip, and the temporal M-RoPE ids hardly advance.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import torch

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import is_replaced, replace_function

_MODEL_TYPE = "qwen2_5_vl"
_PROCESSOR = "sglang.srt.multimodal.processors.qwen_vl"
_sampled: ContextVar[list[dict[str, Any] | None] | None] = ContextVar("sampled", default=None)


def one_row_per_temporal_grid(grid_thw: torch.Tensor) -> torch.Tensor:
    """Split each ``[t, h, w]`` into t rows of ``[1, h, w]``.

    Patch order, rotary positions and windows do not depend on it; the tower's ``cu_seqlens``
    (cumulative t * h * w) then ends a block after every temporal grid.

    Parameters
    ----------
    grid_thw
        Integers ``[videos, 3]``.

    Returns
    -------
    torch.Tensor
        Integers ``[sum of t, 3]``.
    """
    split = grid_thw.repeat_interleave(grid_thw[:, 0], dim=0)
    split[:, 0] = 1
    return split


def install_in_model() -> None:
    """Correct the vision tower's block boundaries in this process."""
    contract.require("exact vision")

    def make(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def forward(self: Any, x: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
            return original(self, x, one_row_per_temporal_grid(grid_thw))

        return forward

    replace_function("sglang.srt.models.qwen2_5_vl", "Qwen2_5_VisionTransformer.forward", make)


def is_in_processor() -> bool:
    """Whether `install_in_processor` was called in this process; it cannot be undone."""
    found = sys.modules.get(_PROCESSOR)
    return found is not None and is_replaced(found.preprocess_video)


def install_in_processor() -> None:
    """Hand the processor the metadata of the frames that SGLang sampled."""
    contract.require("exact vision")

    def make_preprocess(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def preprocess_video(*args: Any, **kwargs: Any) -> Any:
            video, metadata = await original(*args, **kwargs)
            seen = _sampled.get()
            if seen is not None:
                seen.append(metadata)
            return video, metadata

        return preprocess_video

    def make_process(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def process_mm_data_async(self: Any, *args: Any, **kwargs: Any) -> Any:
            token = _sampled.set([])
            try:
                return await original(self, *args, **kwargs)
            finally:
                _sampled.reset(token)

        return process_mm_data_async

    def make_combine(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def process_and_combine_mm_data_async(
            self: Any, base_output: Any, mm_tokens: Any, **kwargs: Any
        ) -> Any:
            metadata = _sampled.get()
            if (
                self.hf_config.model_type == _MODEL_TYPE
                and metadata
                and all(entry is not None for entry in metadata)
            ):
                kwargs.setdefault("video_metadata", metadata)
                kwargs.setdefault("do_sample_frames", False)
            return await original(self, base_output, mm_tokens, **kwargs)

        return process_and_combine_mm_data_async

    replace_function(_PROCESSOR, "preprocess_video", make_preprocess)
    replace_function(_PROCESSOR, "QwenVLImageProcessor.process_mm_data_async", make_process)
    replace_function(
        _PROCESSOR, "QwenVLImageProcessor.process_and_combine_mm_data_async", make_combine
    )
