"""Where a prompt's video is, and which rows ask about it; host side only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Grid = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class VideoLayout:
    """Positions in one prompt, all on the host.

    Attributes
    ----------
    length
        Prompt tokens (without anything generated).
    video_positions
        int64 ``[N]``, ascending: every video token, several videos in prompt order.
    video_lengths
        Tokens of each video, in prompt order.
    video_grids
        ``(frames, rows, columns)`` of each video's tokens, None where it has no grid.
    query_start, query_stop
        The query rows: tokens after the last video, at most the last ``max_query_rows``
        (SpecVLM, section 3; empty where the prompt ends with its video or has none).
    seconds_per_frame
        Of each video's grid, None where the times of its frames are not known.
    """

    length: int
    video_positions: IntArray
    video_lengths: tuple[int, ...]
    video_grids: tuple[Grid | None, ...]
    query_start: int
    query_stop: int
    seconds_per_frame: tuple[float | None, ...] = ()

    @property
    def video_tokens(self) -> int:
        """N, the number of video tokens."""
        return int(self.video_positions.size)

    def query_rows_within(self, start: int, stop: int) -> range:
        """The query rows among the positions ``start`` to ``stop`` of one forward pass."""
        return range(max(self.query_start, start), min(self.query_stop, stop))

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
    grids: Sequence[Grid | None] | None = None,
    trailing: int = 0,
    seconds_per_frame: Sequence[float | None] | None = None,
) -> VideoLayout:
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
    grids
        Of each video; by default none is known.
    trailing
        Tokens after the last video that belong to it and ask nothing.
    seconds_per_frame
        Of each video's grid; by default not known.

    Raises
    ------
    ValueError
        Spans outside the prompt or overlapping.
    """
    unknown = [None] * len(video_spans)
    known = zip(
        video_spans,
        unknown if grids is None else grids,
        unknown if seconds_per_frame is None else seconds_per_frame,
        strict=True,
    )
    videos = sorted(known, key=lambda video: video[0][0][0])
    per_video = [
        np.concatenate([np.arange(first, last + 1, dtype=np.int64) for first, last in spans])
        for spans, _, _ in videos
    ]
    positions = np.concatenate([np.empty(0, dtype=np.int64), *per_video])
    if positions.size and (
        positions[0] < 0 or positions[-1] >= length or (np.diff(positions) <= 0).any()
    ):
        raise ValueError(f"video_spans={video_spans} must ascend within the {length} prompt tokens")
    if not positions.size:
        return unpruned(length)
    first_row = min(int(positions[-1]) + 1 + trailing, length)
    first_row = max(first_row, length - max_query_rows)
    return VideoLayout(
        length,
        positions,
        tuple(video.size for video in per_video),
        tuple(grid for _, grid, _ in videos),
        first_row,
        length,
        tuple(seconds for _, _, seconds in videos),
    )


def unpruned(length: int) -> VideoLayout:
    """Return the `VideoLayout` of a prompt of ``length`` tokens without any video."""
    return VideoLayout(length, np.empty(0, dtype=np.int64), (), (), length, length)
