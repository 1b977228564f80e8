"""Positions of a prompt whose video was pruned.

The draft reads only the kept columns of the prompt. Which position each kept column gets decides
whether the draft still agrees with the target:

- ``"contiguous"``: the pruned prompt is renumbered from 0 (1-D RoPE families, the default there);
- ``"original"``: every kept token keeps its index in the full prompt (1-D RoPE families);
- ``"mrope"``: 3-D ids of the FULL prompt, gathered at the kept columns (Qwen2-VL and later).

Everything here is per request and in int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Scheme = Literal["contiguous", "original", "mrope"]


@dataclass(frozen=True)
class VisionSpan:
    """One image or one video inside a prompt.

    Parameters
    ----------
    start : int
        Prompt index of its first vision token.
    grid_thw : tuple of int
        Frames, rows and columns in patches, before the spatial merge.
    seconds_per_grid : float
        Seconds between two temporal grid steps of a video; 0 for a still image.
    """

    start: int
    grid_thw: tuple[int, int, int]
    seconds_per_grid: float = 0.0


def kept_prompt_indices(
    prompt_length: int,
    video_spans: Sequence[tuple[int, int]],
    kept_video_tokens: npt.ArrayLike,
) -> IntArray:
    """Prompt indices that survive pruning: all tokens outside the video, and the kept video tokens.

    Parameters
    ----------
    prompt_length : int
        Tokens of the full prompt.
    video_spans : sequence of (start, stop)
        Half-open spans of video tokens, ascending and disjoint. A video may own several spans
        (families that write timestamps between frames). Images are not listed: they are kept whole.
    kept_video_tokens : int array [K]
        Strictly ascending indices into the N video tokens of all spans, in prompt order.

    Returns
    -------
    int64 array [prompt_length - N + K]
        Strictly ascending.

    Raises
    ------
    ValueError
        A negative length, a span outside the prompt, empty or overlapping, kept indices that are
        not integers, not ascending or outside [0, N).
    """
    _require(prompt_length >= 0, "prompt_length", prompt_length, ">= 0")
    is_kept = np.ones(prompt_length, dtype=bool)
    video: list[int] = []
    previous_stop = 0
    for start, stop in video_spans:
        _require(
            previous_stop <= start < stop <= prompt_length,
            "video_spans",
            (start, stop),
            f"non-empty, ascending and disjoint spans inside [{previous_stop}, {prompt_length}]",
        )
        video.extend(range(start, stop))
        previous_stop = stop
    video_indices = np.array(video, dtype=np.int64)
    kept = _ascending_indices("kept_video_tokens", kept_video_tokens, len(video_indices))
    is_kept[video_indices] = False
    is_kept[video_indices[kept]] = True
    return np.flatnonzero(is_kept).astype(np.int64)


def mrope_positions(
    prompt_length: int,
    vision: Sequence[VisionSpan] = (),
    *,
    spatial_merge_size: int = 2,
    tokens_per_second: float = 2.0,
) -> IntArray:
    """3-D rotary ids (time, row, column) of a full prompt, by the rule of Qwen2.5-VL.

    Text counts all three axes up together. A vision span starts one past the largest id before it;
    its token at merged grid cell (t, r, c) gets ``start + (floor(t * seconds_per_grid *
    tokens_per_second), r, c)``. What follows starts one past the largest id of the span, on any
    axis. Time is rounded in float32 because SGLang does so.

    Parameters
    ----------
    prompt_length : int
        Tokens of the full prompt.
    vision : sequence of VisionSpan
        Images and videos in prompt order.
    spatial_merge_size : int
        Patches per token along each side (``vision_config.spatial_merge_size``).
    tokens_per_second : float
        Temporal ids per second (``vision_config.tokens_per_second``).

    Returns
    -------
    int64 array [3, prompt_length]

    Raises
    ------
    ValueError
        A negative length, a span that overlaps its predecessor or leaves the prompt, a grid that is
        not positive or not a multiple of ``spatial_merge_size``, negative or non-finite times.

    Notes
    -----
    Source: ``sglang.srt.layers.rotary_embedding.mrope_rope_index.get_rope_index`` for
    ``qwen2_5_vl``. Newer transformers releases continue after a span at ``start + max(rows,
    columns)`` instead, which differs once a video lasts longer than it is wide; the served target
    follows SGLang.
    """
    _require(prompt_length >= 0, "prompt_length", prompt_length, ">= 0")
    _require(spatial_merge_size >= 1, "spatial_merge_size", spatial_merge_size, ">= 1")
    _require(
        np.isfinite(tokens_per_second) and tokens_per_second > 0,
        "tokens_per_second",
        tokens_per_second,
        "(0, inf)",
    )
    pieces: list[IntArray] = []
    index = 0
    next_position = 0
    for span in vision:
        cells = _merged_cells(span, spatial_merge_size, tokens_per_second)
        stop = span.start + cells.shape[1]
        _require(
            index <= span.start and stop <= prompt_length,
            "vision",
            (span.start, stop),
            f"ascending and disjoint spans inside [{index}, {prompt_length}]",
        )
        pieces.append(_text_positions(next_position, span.start - index))
        next_position += span.start - index
        pieces.append(cells + next_position)
        next_position = int(pieces[-1].max()) + 1
        index = stop
    pieces.append(_text_positions(next_position, prompt_length - index))
    return np.concatenate(pieces, axis=1)


def rope_delta(mrope: npt.ArrayLike) -> int:
    """What to add to a token's index to get its M-RoPE id once the prompt is over.

    Parameters
    ----------
    mrope : int array [3, prompt_length]
        3-D ids of the full prompt, from `mrope_positions`.

    Returns
    -------
    int
        ``max(ids) + 1 - prompt_length``; 0 for an empty or text-only prompt. Pruning leaves it
        alone: generated tokens of draft and target share their positions.

    Raises
    ------
    ValueError
        ``mrope`` is not an integer array of three rows.
    """
    ids = _three_rows(mrope)
    return int(ids.max(initial=-1)) + 1 - int(ids.shape[1])


def pruned_positions(
    scheme: Scheme,
    kept: npt.ArrayLike,
    *,
    prompt_length: int,
    mrope: npt.ArrayLike | None = None,
) -> IntArray:
    """Positions of the kept prompt tokens.

    Parameters
    ----------
    scheme : {"contiguous", "original", "mrope"}
        How kept tokens are numbered (see the module's head).
    kept : int array [M]
        Strictly ascending prompt indices, from `kept_prompt_indices`.
    prompt_length : int
        Tokens of the full prompt.
    mrope : int array [3, prompt_length], optional
        3-D ids of the full prompt; required by, and only by, ``"mrope"``.

    Returns
    -------
    int64 array [M], or [3, M] for ``"mrope"``

    Raises
    ------
    ValueError
        Unknown scheme, ``kept`` out of range or not ascending, ``mrope`` missing, superfluous or of
        the wrong shape.
    """
    _check_scheme(scheme)
    _require(prompt_length >= 0, "prompt_length", prompt_length, ">= 0")
    indices = _ascending_indices("kept", kept, prompt_length)
    if scheme == "mrope":
        _require(mrope is not None, "mrope", None, "an array [3, prompt_length] for this scheme")
        ids = _three_rows(mrope)
        _require(ids.shape[1] == prompt_length, "mrope", ids.shape, f"shape (3, {prompt_length})")
        return ids[:, indices]
    _require(mrope is None, "mrope", "an array", "None for 1-D schemes")
    return np.arange(len(indices), dtype=np.int64) if scheme == "contiguous" else indices


def generated_positions(
    scheme: Scheme,
    steps: npt.ArrayLike,
    *,
    prompt_length: int,
    kept_length: int,
    delta: int = 0,
) -> IntArray:
    """Positions of generated tokens, as the draft sees them.

    Parameters
    ----------
    scheme : {"contiguous", "original", "mrope"}
        The scheme of the prompt.
    steps : int array [n]
        0 for the first token after the prompt. Nodes of a draft tree at one depth share a step.
    prompt_length, kept_length : int
        Tokens of the full prompt and of the pruned one.
    delta : int
        `rope_delta` of the full prompt; used by ``"mrope"`` alone.

    Returns
    -------
    int64 array [n], or [3, n] (equal rows) for ``"mrope"``

    Raises
    ------
    ValueError
        Unknown scheme, negative steps, ``kept_length`` outside [0, prompt_length], or a delta with
        a 1-D scheme.
    """
    _check_scheme(scheme)
    _require(prompt_length >= 0, "prompt_length", prompt_length, ">= 0")
    _require(0 <= kept_length <= prompt_length, "kept_length", kept_length, f"[0, {prompt_length}]")
    _require(scheme == "mrope" or delta == 0, "delta", delta, "0 for 1-D schemes")
    offsets = _integers("steps", steps)
    _require(offsets.ndim == 1, "steps", offsets.shape, "shape (n,)")
    _require(bool((offsets >= 0).all()), "steps", offsets.tolist(), ">= 0")
    if scheme == "contiguous":
        return kept_length + offsets
    if scheme == "original":
        return prompt_length + offsets
    return np.tile(prompt_length + delta + offsets, (3, 1))


def _merged_cells(span: VisionSpan, merge: int, tokens_per_second: float) -> IntArray:
    frames, rows, columns = span.grid_thw
    _require(
        min(span.grid_thw) >= 1 and rows % merge == 0 and columns % merge == 0,
        "grid_thw",
        span.grid_thw,
        f"positive sizes, rows and columns multiples of spatial_merge_size = {merge}",
    )
    _require(
        np.isfinite(span.seconds_per_grid) and span.seconds_per_grid >= 0,
        "seconds_per_grid",
        span.seconds_per_grid,
        "[0, inf)",
    )
    times = np.arange(frames, dtype=np.float32) * np.float32(span.seconds_per_grid)
    times = np.floor(times * np.float32(tokens_per_second))
    t, r, c = np.indices((frames, rows // merge, columns // merge)).reshape(3, -1)
    return np.stack([times.astype(np.int64)[t], r, c])


def _text_positions(first: int, count: int) -> IntArray:
    return np.tile(np.arange(first, first + count, dtype=np.int64), (3, 1))


def _three_rows(mrope: npt.ArrayLike | None) -> IntArray:
    ids = _integers("mrope", mrope)
    _require(ids.ndim == 2 and ids.shape[0] == 3, "mrope", ids.shape, "shape (3, prompt_length)")
    return ids


def _ascending_indices(name: str, values: npt.ArrayLike, limit: int) -> IntArray:
    indices = _integers(name, values)
    _require(indices.ndim == 1, name, indices.shape, "shape (n,)")
    outside = indices[(indices < 0) | (indices >= limit)]
    _require(outside.size == 0, name, outside.tolist(), f"[0, {limit})")
    _require(bool((np.diff(indices) > 0).all()), name, indices.tolist(), "strictly ascending")
    return indices


def _integers(name: str, values: npt.ArrayLike | None) -> IntArray:
    array = np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64)
    _require(np.issubdtype(array.dtype, np.integer), name, array.dtype, "integers")
    return array.astype(np.int64)


def _check_scheme(scheme: str) -> None:
    _require(scheme in get_args(Scheme), "scheme", scheme, f"one of {get_args(Scheme)}")


def _require(holds: bool | np.bool_, name: str, value: Any, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} = {value!r} is not allowed: expected {allowed}")
