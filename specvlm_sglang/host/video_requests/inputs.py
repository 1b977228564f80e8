"""One video of a request, in whatever form a client sends it.

A chat part that says more than a ``url`` travels through SGLang as one string, since that is all
its classes hold: `PREFIX`, the part's fields as JSON, and after a line break the ``url``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from specvlm_sglang.host.video_requests.frames import FrameList, jpeg_frames
from specvlm_sglang.host.video_requests.options import (
    NOTHING_SET,
    VideoOptions,
    options_of,
    read_options,
    shown,
)

PREFIX = "specvlm-video:"
SOURCES = ("url", "video")
TIMES = "times"
# What SGLang's schema of `/generate` calls them in an item.
_NATIVE_NAMES = {"num_frames": "nframes", "total_max_pixels": "total_pixels"}


@dataclass(frozen=True)
class VideoInput:
    """A video and the options beside it.

    Attributes
    ----------
    source
        What SGLang loads, or a `FrameList`.
    options
        Those of this video alone.
    """

    source: Any
    options: VideoOptions = NOTHING_SET


def encode(fields: Mapping[str, Any]) -> str:
    """Return a part's fields as one string; an address alone stays as it is."""
    fields = {key: value for key, value in fields.items() if value is not None}
    source = fields.get("url")
    if not isinstance(source, str):
        return PREFIX + json.dumps(fields)
    rest = {key: value for key, value in fields.items() if key != "url"}
    return f"{PREFIX}{json.dumps(rest)}\n{source}" if rest else source


def read_video(entry: Any) -> VideoInput:
    """Read one entry of ``video_data``.

    Parameters
    ----------
    entry
        A string; bytes; an object with ``url`` or ``video`` and options; a list of frames; SGLang's
        ``VideoData``; or anything that SGLang takes and that has no options.

    Raises
    ------
    ValueError
        Unknown fields, values out of range, or a list that holds something else than frames.
    """
    if isinstance(entry, str):
        return _read_string(entry)
    if isinstance(entry, Mapping):
        return VideoInput(entry) if "format" in entry else _read_fields(entry)
    if isinstance(entry, list | tuple) and not _is_decoded(entry):
        return VideoInput(FrameList(tuple(entry)))
    if hasattr(entry, "preprocess_kwargs"):
        read = read_video(entry.url)
        beside = read_options(entry.preprocess_kwargs, "video_url")
        return replace(read, options=beside.merged_over(read.options))
    return VideoInput(entry)


def read_videos(request: Any, server: VideoOptions) -> list[tuple[Any, VideoOptions]]:
    """Return what SGLang is to load for each video of a ``GenerateReqInput``, and its options.

    Parameters
    ----------
    request
        SGLang's, of one prompt.
    server
        The server's options over the family's.

    Raises
    ------
    ValueError
        From `read_video` and `options.options_of`.
    """
    common = options_of(request, server)
    found, entries = [], request.video_data
    if entries is not None and not isinstance(entries, list):
        entries = [entries]
    for entry in entries or []:
        video = read_video(entry)
        merged, source = video.options.merged_over(common), video.source
        if isinstance(source, FrameList):
            source = source.with_options(video.options, merged)
        found.append((source, merged))
    return found


def _read_string(text: str) -> VideoInput:
    if not text.startswith(PREFIX):
        frames = jpeg_frames(text)
        return VideoInput(text if frames is None else FrameList(frames))
    head, newline, url = text.removeprefix(PREFIX).partition("\n")
    try:
        fields = json.loads(head)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise ValueError(f"{shown(text)} is no video")
    return _read_fields({**fields, "url": url} if newline else fields)


def _read_fields(given: Mapping[str, Any]) -> VideoInput:
    fields = {_NATIVE_NAMES.get(key, key): value for key, value in given.items()}
    sources = [fields[name] for name in SOURCES if fields.get(name) is not None]
    if len(sources) != 1:
        raise ValueError("a video has either a url or a list of frames as its video")
    source, times, rate = sources[0], fields.get(TIMES), None
    frames = jpeg_frames(source) if isinstance(source, str) else None
    if isinstance(source, list):
        frames = tuple(source)
    if frames is not None:
        # No frame is chosen by it, so it may stand beside `nframes`.
        rate = read_options({"fps": fields.pop("fps", None)}, "the video").fps
    options = read_options(fields, "the video", (*SOURCES, TIMES))
    if frames is None:
        if times is not None:
            raise ValueError("times belong to a list of frames, not to a file")
        if not isinstance(source, str | bytes):
            raise ValueError(f"the video's url={shown(source)} must be a string or a list of them")
        return VideoInput(source, options)
    if times is not None and rate is not None:
        raise ValueError("fps and times of a list of frames exclude each other")
    if times is not None and not isinstance(times, list):
        raise ValueError(f"times={shown(times)} must be a list of seconds")
    return VideoInput(FrameList(frames, rate, None if times is None else tuple(times)), options)


def _is_decoded(entry: Sequence[Any]) -> bool:
    """Whether the frames are pixels already: SGLang takes those as they are."""
    return bool(entry) and all(isinstance(frame, np.ndarray | torch.Tensor) for frame in entry)
