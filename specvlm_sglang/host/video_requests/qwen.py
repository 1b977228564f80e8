"""Options, lists of frames and receipts in SGLang's processor of Qwen-VL models.

The processor knows one configuration, the server's, and decodes each video of a request by it. Here
each video has its own, which a `ContextVar` carries to where the video is decoded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.image_utils import SizeDict

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function
from specvlm_sglang.host.video_requests import chat, receipt
from specvlm_sglang.host.video_requests.frames import FrameReader
from specvlm_sglang.host.video_requests.inputs import read_videos
from specvlm_sglang.host.video_requests.options import (
    NAMES,
    OF_PIXELS,
    VideoOptions,
    read_options,
)

OF_OWN_PIXELS = ("qwen3_vl", "qwen3_vl_moe")
"""Model types whose own processor sizes all frames of a video together, whatever SGLang does."""
MODEL_TYPES = ("qwen2_5_vl", "qwen2_vl", *OF_OWN_PIXELS)
SERVER = "--mm-process-config video"
_PROCESSOR = "sglang.srt.multimodal.processors.qwen_vl"
_CLASS = "QwenVLImageProcessor"


@dataclass(frozen=True)
class PixelLimits:
    """Pixels where no option says how many.

    Attributes
    ----------
    low, high
        Of a frame, as the checkpoint's own processor limits it.
    total
        Of half of a video's frames.
    """

    low: int
    high: int
    total: int


@dataclass
class _Request:
    """The videos of a request that is being processed.

    Attributes
    ----------
    options
        Of the videos to come, in order.
    checkpoint
        Its own processor of videos, where an option says how large frames are made; None where
        none does, and that processor resizes them.
    resized
        Whether all that were decoded got their size here.
    sources
        Of the videos that were decoded.
    """

    options: Iterator[VideoOptions]
    checkpoint: Any
    resized: bool = True
    sources: list[receipt.Source] = field(default_factory=list)

    def with_its_size(self, video: Any) -> Any:
        """Resize a video without options of its own as the checkpoint's processor would.

        Parameters
        ----------
        video
            uint8 ``[frames, 3, height, width]``; anything else is left to that processor.
        """
        checkpoint = self.checkpoint
        if checkpoint is None:
            return video
        if not isinstance(video, torch.Tensor) or video.ndim != 4:
            self.resized = False
            return video
        return checkpoint.resize(
            video[None],
            size=SizeDict(**dict(checkpoint.size)),
            resample=checkpoint.resample,
            factor=checkpoint.patch_size * checkpoint.merge_size,
            temporal_factor=checkpoint.temporal_patch_size,
            cap_pixels_per_frame=checkpoint.cap_pixels_per_frame,
        )[0]


_current: ContextVar[_Request | None] = ContextVar("current", default=None)


def check_pairs(options: VideoOptions) -> None:
    """Refuse fewer frames than a pair.

    Raises
    ------
    ValueError
        `nframes` or `max_frames` below 2.
    """
    for name in ("nframes", "max_frames"):
        if getattr(options, name) == 1:
            raise ValueError(f"{name}=1 must be at least 2: the model takes frames in pairs")


def check_pixels(options: VideoOptions, model_type: str) -> None:
    """Refuse options of pixels that the model's own processor would undo.

    Raises
    ------
    ValueError
        One is given for such a model.
    """
    given = [name for name in OF_PIXELS if getattr(options, name) is not None]
    if given and model_type in OF_OWN_PIXELS:
        raise ValueError(
            f"{given[0]}={getattr(options, given[0])} has no meaning for {model_type}: its own "
            "processor sizes all frames of a video together"
        )


def frames_config(options: VideoOptions, total: int) -> dict[str, Any]:
    """Return SGLang's configuration of the frames of a file.

    Parameters
    ----------
    options
        Of the video.
    total
        Frames in the file; `nframes` above it means all of them, an even number.
    """
    config = {name: value for name, value in options.given().items() if name not in OF_PIXELS}
    if options.nframes is not None:
        config["nframes"] = min(options.nframes, max(2, total - total % 2))
    return config


def pixel_config(options: VideoOptions, frames: int, limits: PixelLimits) -> dict[str, int]:
    """Return SGLang's configuration of the pixels of a video.

    Parameters
    ----------
    options
        Of the video.
    frames
        That the model will see.
    limits
        Where the options say nothing.

    Raises
    ------
    ValueError
        `min_pixels` of all frames above `total_pixels`.
    """
    total = options.total_pixels or limits.total
    share = total * 2 // frames
    high = min(options.max_pixels or max(limits.high, options.min_pixels or 0), share)
    low = options.min_pixels
    if low is None:
        # Sides are multiples of 28: what is made larger must stay below the maximum.
        low = min(limits.low, max(1, high // 4))
    elif low > share:
        raise ValueError(
            f"min_pixels={low} of {frames} frames is more than total_pixels={total} allows: "
            f"{share} for each"
        )
    return {"min_pixels": low, "max_pixels": high, "total_pixels": total}


def install() -> None:
    """Read requests for processors of Qwen-VL models from when one is made; idempotent.

    Processes that never process media do not import SGLang's processors.
    """
    contract.require("processors")
    replace_function(
        "sglang.srt.managers.multimodal_processor", "get_mm_processor", _prepared_for_requests
    )


def _prepared_for_requests(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_mm_processor(*args: Any, **kwargs: Any) -> Any:
        processor = original(*args, **kwargs)
        if processor.hf_config.model_type in MODEL_TYPES and type(processor).__name__ == _CLASS:
            prepare(processor)
        return processor

    return get_mm_processor


def prepare(processor: Any) -> None:
    """Read requests for this processor of a Qwen-VL model; idempotent.

    Parameters
    ----------
    processor
        SGLang's, with the server's configuration.

    Raises
    ------
    ValueError
        The configuration has options out of range, or that exclude each other.
    """
    server = read_options(processor.video_config, SERVER, strict=False)
    check_pairs(server)
    check_pixels(server, processor.hf_config.model_type)
    contract.require("qwen requests")
    replace_function(_PROCESSOR, "preprocess_video", _with_own_options)
    replace_function(_PROCESSOR, f"{_CLASS}._process_mm_data_uncached", _with_requests)
    replace_function(_PROCESSOR, f"{_CLASS}.process_and_combine_mm_data_async", _with_own_pixels)
    chat.understand()


def _with_requests(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def _process_mm_data_uncached(
        self: Any, image_data: Any, input_text: Any, request_obj: Any, *args: Any, **kwargs: Any
    ) -> Any:
        model_type = self.hf_config.model_type
        if model_type not in MODEL_TYPES or not request_obj.video_data:
            return await original(self, image_data, input_text, request_obj, *args, **kwargs)
        server = read_options(self.video_config, SERVER, strict=False)
        videos = read_videos(request_obj, server)
        for _, options in videos:
            check_pairs(options)
            check_pixels(options, model_type)
        sent, request_obj.video_data = request_obj.video_data, [source for source, _ in videos]
        asked = any(options.of_pixels for _, options in videos)
        current = _Request(
            iter([options for _, options in videos]),
            self._processor.video_processor if asked else None,
        )
        token = _current.set(current)
        try:
            output = await original(self, image_data, input_text, request_obj, *args, **kwargs)
        finally:
            _current.reset(token)
            request_obj.video_data = sent
        patch = self.hf_config.vision_config.patch_size
        receipt.keep(request_obj, _receipts(output.mm_items, current.sources, patch))
        return output

    return _process_mm_data_uncached


def _with_own_options(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    from sglang.srt.multimodal.processors import qwen_vl
    from sglang.srt.utils.video_decoder import VideoDecoderWrapper

    async def preprocess_video(vr: Any, *args: Any, **kwargs: Any) -> Any:
        current = _current.get()
        if current is None:
            return await original(vr, *args, **kwargs)
        options = next(current.options, VideoOptions())
        if not isinstance(vr, VideoDecoderWrapper):
            video, metadata = await original(vr, *args, **kwargs)
            current.sources.append(receipt.of_pixels(len(video)))
            return current.with_its_size(video), metadata
        server = kwargs.get("video_config") or {}
        config = {key: value for key, value in server.items() if key not in NAMES}
        if isinstance(vr, FrameReader):
            if len(vr) < 2:
                raise ValueError(
                    "a list of frames has 1 frame; the model needs 2. Send it as an image."
                )
            vr = vr.in_pairs()
            config["nframes"] = len(vr)
        else:
            config.update(frames_config(options, len(vr)))
        if options.of_pixels:
            frames = qwen_vl.smart_nframes(config, total_frames=len(vr), video_fps=vr.avg_fps)
            config.update(pixel_config(options, frames, _limits_of(current.checkpoint)))
        try:
            video, metadata = await original(vr, *args, **{**kwargs, "video_config": config})
        except RuntimeError as error:
            if not options.of_pixels or "greater than 0" not in str(error):
                raise
            raise ValueError(
                f"max_pixels={config['max_pixels']} leaves a side of the frames no pixel; the "
                "model sees squares of 28 x 28"
            ) from error
        indices = [int(index) for index in metadata["frames_indices"]]
        current.sources.append(receipt.describe(vr, indices))
        return video if options.of_pixels else current.with_its_size(video), metadata

    return preprocess_video


def _with_own_pixels(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def process_and_combine_mm_data_async(
        self: Any, base_output: Any, mm_tokens: Any, **kwargs: Any
    ) -> Any:
        current = _current.get()
        if current is not None and current.checkpoint is not None and current.resized:
            # The frames have their size; the checkpoint's processor would give them its own.
            config = kwargs.get("processor_video_config") or {}
            kwargs["processor_video_config"] = {**config, "do_resize": False}
        return await original(self, base_output, mm_tokens, **kwargs)

    return process_and_combine_mm_data_async


def _limits_of(checkpoint: Any) -> PixelLimits:
    from sglang.srt.multimodal.processors.qwen_vl import VIDEO_TOTAL_PIXELS

    size = dict(checkpoint.size)
    return PixelLimits(size["shortest_edge"], size["longest_edge"], VIDEO_TOTAL_PIXELS)


def _receipts(items: list[Any], sources: list[receipt.Source], patch: int) -> list[dict[str, Any]]:
    """One for each video of the prompt, in order; none where embeddings came without a grid.

    A video has one span in the prompt, or one for each pair of frames.
    """
    found: list[dict[str, Any]] = []
    for item in items:
        if not item.is_video():
            continue
        grids = torch.as_tensor(getattr(item, "video_grid_thw", ())).reshape(-1, 3).tolist()
        spans = list(item.offsets)
        if len(spans) not in (len(grids), sum(grid[0] for grid in grids)):
            return []
        is_split = len(spans) != len(grids)
        for frames, rows, columns in grids:
            known = len(found) < len(sources)
            source = sources[len(found)] if known else receipt.of_pixels(2 * frames)
            count = frames if is_split else 1
            tokens = sum(last - first + 1 for first, last in spans[:count])
            spans = spans[count:]
            found.append(
                receipt.receipt(source, height=rows * patch, width=columns * patch, tokens=tokens)
            )
    return found
