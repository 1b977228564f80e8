"""Chat parts about videos that say more than SGLang's classes know.

``{"type": "video_url", "video_url": {"url": ..., <options>}}`` and
``{"type": "video", "video": <address or list of frames>, <options>}`` become a part of SGLang's own
whose ``url`` has everything (`inputs.encode`). SGLang drops unknown fields of a part without a
word, and answers a value out of range with the whole request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException
from pydantic_core import core_schema

from specvlm_sglang.host import contract
from specvlm_sglang.host.video_requests import inputs
from specvlm_sglang.host.video_requests.options import NAMES, shown

_understood = False
"""Whether this process serves a family that reads such parts: other families keep SGLang's."""


def understand(*, parts: bool = True) -> None:
    """Say whether parts are read from here on."""
    global _understood
    _understood = parts


def normalised(part: Any) -> Any:
    """Return a part as SGLang's class takes it; anything else than a part about a video unchanged.

    Raises
    ------
    HTTPException
        A 400: a part without a video, or options in a place where nothing reads them.
    """
    if not _understood or not isinstance(part, Mapping):
        return part
    if part.get("type") == "video_url":
        video = part.get("video_url")
        video = {"url": video} if isinstance(video, str) else video
        beside = [name for name in (*NAMES, inputs.TIMES) if part.get(name) is not None]
        if beside:
            raise _refusal(f"{beside[0]} stands beside video_url; it belongs beside its url")
        if not isinstance(video, Mapping) or "url" not in video:
            raise _refusal("a video_url part needs {'url': ...}")
        if not isinstance(video["url"], str | list):
            raise _refusal(f"video_url.url={shown(video['url'])} must be a string")
        return {"type": "video_url", "video_url": {"url": inputs.encode(video)}}
    if part.get("type") == "video":
        fields = {key: value for key, value in part.items() if key != "type"}
        video = fields.get("video")
        if not isinstance(video, str | list):
            raise _refusal(
                f"video={shown(video)} of a part of type video must be an address or a list of "
                "frames"
            )
        if isinstance(video, str):
            fields["url"] = fields.pop("video")
        return {"type": "video_url", "video_url": {"url": inputs.encode(fields)}}
    return part


def install() -> None:
    """Read such parts in this process; idempotent.

    Pydantic copies the schema of a class into those that hold it, so all up to the request are
    built anew. That is early enough: FastAPI reads them when SGLang's HTTP server is imported.
    """
    contract.require("chat parts")
    from sglang.srt.entrypoints.openai import protocol

    part = protocol.ChatCompletionMessageContentVideoPart
    if "__get_pydantic_core_schema__" in vars(part):
        return

    def schema(cls: Any, source: Any, handler: Any) -> Any:
        return core_schema.no_info_before_validator_function(normalised, handler(source))

    part.__get_pydantic_core_schema__ = classmethod(schema)
    for holder in (
        part,
        protocol.ChatCompletionMessageGenericParam,
        protocol.ChatCompletionMessageUserParam,
        protocol.ChatCompletionRequest,
        protocol.TokenizeRequest,
    ):
        holder.model_rebuild(force=True)


def _refusal(message: str) -> HTTPException:
    # Pydantic would collect a ValueError, and repeat the request beside it.
    return HTTPException(status_code=400, detail=message)
