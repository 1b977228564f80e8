"""A request's prompt as SpecVLM sees it: where its video is, which rows ask about it.

Host side only, built once per request from what SGLang's processor left on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class VideoPrompt:
    """Positions in one prompt, all on the host.

    Attributes
    ----------
    length
        Prompt tokens (without anything generated).
    video_positions
        int64 ``[N]``, ascending: every video token, several videos in prompt order.
    video_lengths
        Tokens of each video, in prompt order.
    query_start, query_stop
        The query rows: tokens after the last video token, at most the last ``max_query_rows``
        (SpecVLM, section 3; empty where the prompt ends with its video or has none).
    """

    length: int
    video_positions: IntArray
    video_lengths: tuple[int, ...]
    query_start: int
    query_stop: int

    @property
    def video_tokens(self) -> int:
        """N, the number of video tokens."""
        return int(self.video_positions.size)

    @property
    def query_rows(self) -> int:
        """Number of query rows."""
        return self.query_stop - self.query_start

    def text_positions(self, length: int) -> IntArray:
        """Return all positions below ``length`` that hold no video token, ascending int64."""
        is_text = np.ones(length, dtype=np.bool_)
        is_text[self.video_positions] = False
        return np.flatnonzero(is_text)


def find_video(
    length: int,
    video_spans: list[list[tuple[int, int]]],
    max_query_rows: int,
) -> VideoPrompt:
    """Describe a prompt of ``length`` tokens.

    Parameters
    ----------
    length
        Prompt tokens.
    video_spans
        For each video, its spans ``(first, last)`` in the prompt, both inclusive (SGLang's
        ``MultimodalDataItem.offsets``).
    max_query_rows
        At most this many query rows, the newest.

    Raises
    ------
    ValueError
        Spans outside the prompt or overlapping.
    """
    videos = sorted(video_spans, key=lambda spans: spans[0][0])
    per_video = [
        np.concatenate([np.arange(first, last + 1, dtype=np.int64) for first, last in spans])
        for spans in videos
    ]
    positions = np.concatenate([np.empty(0, dtype=np.int64), *per_video])
    if positions.size and (
        positions[0] < 0 or positions[-1] >= length or (np.diff(positions) <= 0).any()
    ):
        raise ValueError(f"video_spans={video_spans} must ascend within the {length} prompt tokens")
    if not positions.size:
        return VideoPrompt(length, positions, (), length, length)
    first_row = max(int(positions[-1]) + 1, length - max_query_rows)
    return VideoPrompt(
        length, positions, tuple(video.size for video in per_video), first_row, length
    )


def video_items(mm_input: Any) -> list[Any]:
    """Return the video items of a request's ``MultimodalInputs``, in prompt order."""
    if mm_input is None:
        return []
    items = [item for item in mm_input.mm_items if item.is_video()]
    return sorted(items, key=lambda item: item.offsets[0][0])


def prompt_of(req: Any, max_query_rows: int) -> VideoPrompt:
    """Return the `VideoPrompt` of SGLang's ``Req``, built at its first use.

    Raises
    ------
    ValueError
        Spans that do not fit the prompt.
    """
    cached: VideoPrompt | None = getattr(req, "specvlm_prompt", None)
    length = len(req.origin_input_ids)
    if cached is None or cached.length != length:
        spans = [list(item.offsets) for item in video_items(req.multimodal_inputs)]
        cached = find_video(length, spans, max_query_rows)
        req.specvlm_prompt = cached
    return cached
