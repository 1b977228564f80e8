"""Say what is wrong with a video that SGLang refuses, in words that a client can act on.

SGLang answers 400 to a path that does not exist ("Non-base64 digit found") and to a single frame
("nframes should in interval [2, 1], but got 0."); only the words change here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlparse

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

_PROCESSOR = "sglang.srt.multimodal.processors.qwen_vl"
# Base64 may begin with a slash too, but a whole video in it is longer than any path.
_LONGEST_PATH = 4096


def install() -> None:
    """Put clear messages before SGLang's video loading in this process; idempotent."""
    contract.require("video errors")
    replace_function("sglang.srt.utils.common", "_normalize_video_input", _with_named_sources)


def _with_named_sources(original: Callable[..., Any]) -> Callable[..., Any]:
    def _normalize_video_input(video_file: str | bytes) -> str | bytes | None:
        # The scheduler's processes never import the processor; here, before a video, it is loaded.
        if _PROCESSOR in sys.modules:
            contract.require("frame count")
            replace_function(_PROCESSOR, "smart_nframes", _with_named_lengths)
        if isinstance(video_file, str) and _is_missing_path(video_file):
            raise ValueError("the server finds no such file")
        try:
            found: str | bytes | None = original(video_file)
        except ValueError as error:
            if not isinstance(video_file, str) or video_file.startswith(("http://", "https://")):
                raise
            expected = (
                "a data URL must be base64"
                if video_file.startswith("data:")
                else "neither a file that the server finds, nor a URL, nor base64"
            )
            raise ValueError(f"{expected} ({error})") from error
        return found

    return _normalize_video_input


def _is_missing_path(video_file: str) -> bool:
    return (
        video_file.startswith(("/", "file://"))
        and len(video_file) < _LONGEST_PATH
        and not os.path.isfile(unquote(urlparse(video_file).path))
    )


def _with_named_lengths(original: Callable[..., int]) -> Callable[..., int]:
    def smart_nframes(ele: dict[str, Any], total_frames: int, video_fps: float) -> int:
        if 0 < total_frames < 2:
            raise ValueError(
                f"the video has {total_frames} frame; at least 2 are needed. Send it as an image."
            )
        return original(ele, total_frames, video_fps)

    return smart_nframes
