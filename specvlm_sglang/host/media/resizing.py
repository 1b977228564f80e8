"""Frames are scaled while they are decoded: memory follows what is kept, not what is stored.

SGLang decodes all frames of a video at their own size and then resizes the pile. Each is resized
here as it comes, by the same function to the same size, so the pixels are the same bit for bit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import torch

from specvlm_sglang.host.media.picture import check_size
from specvlm_sglang.host.media.reader import PyAVReader

_GROUP_BYTES = 32 << 20


def reader_of(video: Any) -> PyAVReader | None:
    """Our reader behind SGLang's ``VideoDecoderWrapper``; None behind anything else."""
    reader = getattr(video, "_decoder", None)
    return reader if isinstance(reader, PyAVReader) else None


def decoded_groups(
    video: Any, indices: Sequence[int], resized: tuple[int, int]
) -> Iterator[torch.Tensor]:
    """Decode frames a few at a time, for a processor that resizes each frame by itself.

    Parameters
    ----------
    video
        SGLang's ``VideoDecoderWrapper``.
    indices
        Ascending, each at most once.
    resized
        Height and width that the processor makes of each frame.

    Yields
    ------
    torch.Tensor
        uint8 ``[frames, 3, height, width]`` at the file's size, in order.

    Raises
    ------
    ValueError
        A frame that cannot be decoded, or resized frames beyond the limit.
    """
    reader = reader_of(video)
    if reader is None:
        yield video.get_frames_as_tensor(list(indices)).permute(0, 3, 1, 2)
        return
    check_size(len(indices), *resized)
    most = max(1, _GROUP_BYTES // (reader.height * reader.width * 3))
    group = []
    for _, picture in reader.pictures(indices):
        group.append(torch.from_numpy(picture))
        if len(group) == most:
            yield torch.stack(group).permute(0, 3, 1, 2)
            group = []
    if group:
        yield torch.stack(group).permute(0, 3, 1, 2)


def while_decoding(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """For Qwen-VL's ``preprocess_video``: the same frames, of which few are held at a time."""

    async def preprocess_video(vr: Any, *args: Any, **kwargs: Any) -> Any:
        reader = reader_of(vr)
        if reader is None:
            return await original(vr, *args, **kwargs)
        plan = _plan(reader)
        try:
            shapes, metadata = await original(plan, *args, **kwargs)
        except RuntimeError as error:
            # Of what is done to a plan, only resizing to nothing fails.
            raise ValueError(
                f"a video of {reader.width} x {reader.height} pixels has no size within min_pixels "
                "and max_pixels: its sides are too unequal, or max_pixels is too small"
            ) from error
        frames, _, height, width = shapes.shape
        check_size(frames, height, width)
        # In a thread: the event loop that answers all requests waits for no video.
        resized = await asyncio.to_thread(_resized, reader, plan.indices, height, width)
        return resized, metadata

    return preprocess_video


def _plan(reader: PyAVReader) -> Any:
    """A stand-in for a decoder: SGLang chooses frames and size by it, and no pixel is decoded."""
    from sglang.srt.utils.video_decoder import VideoDecoderWrapper

    class Plan(VideoDecoderWrapper):
        def __init__(self) -> None:
            self.indices: list[int] = []

        def __len__(self) -> int:
            return len(reader)

        @property
        def avg_fps(self) -> float:
            return reader.get_avg_fps()

        def get_frames_as_tensor(self, indices: list[int]) -> torch.Tensor:
            self.indices = indices
            shape = (len(indices), reader.height, reader.width, 3)
            return torch.empty(shape, dtype=torch.uint8, device="meta")

        def close(self) -> None:
            pass

    return Plan()


def _resized(reader: PyAVReader, indices: Sequence[int], height: int, width: int) -> torch.Tensor:
    """Decode and resize, uint8 ``[frames, 3, height, width]``, pinned where SGLang pins."""
    from sglang.srt.utils.common import is_cpu
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    frames = torch.empty((len(indices), 3, height, width), dtype=torch.uint8)
    for place, (_, picture) in enumerate(reader.pictures(indices)):
        stored = torch.from_numpy(picture)[None].permute(0, 3, 1, 2)
        frames[place] = resize(stored, [height, width], interpolation=InterpolationMode.BILINEAR)[0]
    return frames if is_cpu() else frames.pin_memory()
