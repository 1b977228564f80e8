"""OpenAI chat messages about local media, as both the server and `hf.greedy` take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.clips import data_url

VIDEO_SUFFIXES = {".mp4"}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}


def user(*parts: str | Path, inline: bool = False) -> list[dict[str, Any]]:
    """One user turn of texts, images and videos, in the given order.

    Parameters
    ----------
    parts : str or Path
        A string is text; a path is an image or a video by its suffix.
    inline : bool
        Send files as data URLs instead of paths.

    Raises
    ------
    ValueError
        If a path's suffix is neither of an image nor of a video.
    """
    return [{"role": "user", "content": [_part(part, inline) for part in parts]}]


def _part(part: str | Path, inline: bool) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    suffixes = {"video_url": VIDEO_SUFFIXES, "image_url": IMAGE_SUFFIXES}
    for kind, endings in suffixes.items():
        if part.suffix in endings:
            return {"type": kind, kind: {"url": data_url(part) if inline else str(part)}}
    raise ValueError(f"parts must be text, images or videos, got the file {part.name}")
