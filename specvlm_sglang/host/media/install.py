"""The hooks that put this package before SGLang's media loading."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.media import download, resizing
from specvlm_sglang.host.media.reader import PyAVReader
from specvlm_sglang.host.media.sources import name_of, resolve, resolve_image, shortened
from specvlm_sglang.host.patching import replace_function

logger = logging.getLogger(__name__)

DECODER_VARIABLE = "SPECVLM_VIDEO_DECODER"
DECODERS = ("pyav", "sglang")
_COMMON = "sglang.srt.utils.common"
_PROCESSOR = "sglang.srt.multimodal.processors.base_processor"
_QWEN = "sglang.srt.multimodal.processors.qwen_vl"


def decoder() -> str:
    """Who decodes videos: ``"pyav"`` (this package), or ``"sglang"`` (torchcodec or decord).

    Raises
    ------
    ValueError
        Another value of ``SPECVLM_VIDEO_DECODER``.
    """
    chosen = os.environ.get(DECODER_VARIABLE, "").strip().lower() or DECODERS[0]
    if chosen not in DECODERS:
        raise ValueError(f"{DECODER_VARIABLE}={chosen!r} is not one of {', '.join(DECODERS)}")
    return chosen


def install() -> None:
    """Install everything in this process; idempotent.

    Raises
    ------
    ValueError
        A value of ``SPECVLM_VIDEO_DECODER`` that does not exist.
    """
    decoder()
    contract.require("video")
    contract.require("media sources")
    replace_function(
        "sglang.srt.utils.video_decoder", "VideoDecoderWrapper.__init__", _with_our_reader
    )
    replace_function(_COMMON, "_normalize_video_input", _with_resolved_videos)
    replace_function(_COMMON, "load_image", _with_resolved_images)
    replace_function(_COMMON, "get_image_bytes", _with_resolved_images)
    replace_function(_COMMON, "get_mm_http_session", download.with_watched_connections)
    replace_function(_COMMON, "download_remote_media", download.with_a_deadline)
    replace_function(_COMMON, "configure_media_url_security", _before_a_processor)


def _with_our_reader(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(
        self: Any, source: str | bytes, device: str = "cpu", num_decode_threads: int = 0
    ) -> None:
        if decoder() == "sglang":
            original(self, source, device=device, num_decode_threads=num_decode_threads)
            return
        from sglang.srt.utils import video_decoder

        # The wrapper's other methods ask this name which interface its reader has.
        video_decoder._BACKEND = "decord"
        self._source = source
        self._num_decode_threads = num_decode_threads
        self._source_bytes = source if isinstance(source, bytes) else None
        self._source_path = source if isinstance(source, str) else None
        self._tmp_path = None
        self._decoder = PyAVReader(source)

    return __init__


def _with_resolved_videos(original: Callable[..., Any]) -> Callable[..., Any]:
    def _normalize_video_input(video_file: str | bytes) -> str | bytes | None:
        if isinstance(video_file, str):
            video_file = resolve(video_file)
            if isinstance(video_file, str) and not video_file.startswith(("http://", "https://")):
                return video_file
        found: str | bytes | None = original(video_file)
        return found

    return _normalize_video_input


def _with_resolved_images(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load(image_file: Any, *args: Any, **kwargs: Any) -> Any:
        source = getattr(image_file, "url", image_file)
        if isinstance(source, str):
            image_file = resolve_image(source)
        return original(image_file, *args, **kwargs)

    return load


def _before_a_processor(original: Callable[..., Any]) -> Callable[..., Any]:
    """SGLang sets its rules for URLs when it makes a processor: its module is loaded by then."""

    def configure_media_url_security(*args: Any, **kwargs: Any) -> Any:
        install_in_processors()
        return original(*args, **kwargs)

    return configure_media_url_security


def install_in_processors() -> None:
    """Install what belongs to SGLang's processors, in a process that has loaded them."""
    if _PROCESSOR in sys.modules:
        contract.require("media errors")
        replace_function(
            _PROCESSOR, "BaseMultimodalProcessor._load_single_item", _with_short_errors
        )
    if _QWEN in sys.modules:
        contract.require("video resizing")
        replace_function(_QWEN, "smart_nframes", _with_named_lengths)
        replace_function(_QWEN, "preprocess_video", resizing.while_decoding)


def _with_short_errors(original: Callable[..., Any]) -> Callable[..., Any]:
    def _load_single_item(cls: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
        from PIL.Image import DecompressionBombError

        try:
            return original(cls, data, *args, **kwargs)
        except (ValueError, RuntimeError) as error:
            # SGLang's own words repeat the beginning of the data.
            cause = error.__cause__ or error
            is_request = isinstance(error, ValueError) or isinstance(
                cause, OSError | DecompressionBombError
            )
            name = name_of(data)
            said = f"{name}: {shortened(cause)}" if name else shortened(cause)
            raise (ValueError if is_request else RuntimeError)(said) from cause

    return _load_single_item


def _with_named_lengths(original: Callable[..., int]) -> Callable[..., int]:
    def smart_nframes(ele: dict[str, Any], total_frames: int, video_fps: float) -> int:
        if 0 < total_frames < 2:
            raise ValueError(
                f"the video has {total_frames} frame; at least 2 are needed. Send it as an image."
            )
        return original(ele, total_frames, video_fps)

    return smart_nframes
