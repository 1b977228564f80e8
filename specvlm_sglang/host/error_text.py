"""Errors are short: what a client sent is not sent back to it.

SGLang builds some messages out of the request, a file in base64 included. They are cut where all
of them pass, on their way out of the HTTP server.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from specvlm_sglang.host import contract

LONGEST = 450
_HTTP_SERVER = "sglang.srt.entrypoints.http_server"
_ENCODED = re.compile(r"[A-Za-z0-9+/=_%-]{120,}")
_SHOWN = 16
_NAMED_FIELDS = 3
_LARGEST_BODY = 64 << 20
_STREAMED = b'data: {"error"'

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


def install_in_tokenizer() -> None:
    """Shorten the errors of this process's HTTP server, if it is one; idempotent."""
    if _HTTP_SERVER not in sys.modules:
        return
    contract.require("error text")
    from fastapi.exceptions import RequestValidationError
    from sglang.srt.entrypoints.http_server import app

    if any(one.cls is ShortErrors for one in app.user_middleware):
        return
    app.add_middleware(ShortErrors)
    handlers = app.exception_handlers
    handlers[RequestValidationError] = _naming_fields(handlers[RequestValidationError])


def shortened(text: str) -> str:
    """``text`` in at most 450 characters, without what looks like a file in base64."""
    text = _ENCODED.sub(lambda found: f"{found[0][:_SHOWN]}...({len(found[0])} characters)", text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def named(errors: Iterable[Mapping[str, Any]]) -> str:
    """What pydantic found wrong, as ``field: message``; the first few, and how many more."""
    told: list[str] = []
    for error in errors:
        if error.get("type") == "is_instance_of":
            # What the handler wants, and no client can send.
            continue
        parts = [str(part) for part in error.get("loc") or () if part != "body"]
        # In brackets are the validator's own names.
        place = ".".join(part for part in parts if "[" not in part)
        said = f"{place}: {error.get('msg', '')}" if place else str(error.get("msg", ""))
        if said not in told:
            told.append(said)
    more = len(told) - _NAMED_FIELDS
    return "; ".join([*told[:_NAMED_FIELDS], *([f"and {more} more"] if more > 0 else [])])


class ShortErrors:
    """ASGI middleware that shortens the texts of error responses and of errors in a stream."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await self.app(scope, receive, _Shortening(send))


class _Shortening:
    """``send`` of one response; a failed one is held back until it is complete."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start" and message["status"] >= 400:
            self._start = message
            return
        if kind != "http.response.body":
            await self._send(message)
            return
        body = message.get("body", b"")
        if self._start is None:
            if body.startswith(_STREAMED) and len(body) > LONGEST:
                message = {**message, "body": _short_event(body)}
            await self._send(message)
            return
        self._body += body
        if message.get("more_body") and len(self._body) < _LARGEST_BODY:
            return
        start, self._start = self._start, None
        content = _short_json(self._body)
        headers = [
            (name, str(len(content)).encode() if name.lower() == b"content-length" else value)
            for name, value in start["headers"]
        ]
        await self._send({**start, "headers": headers})
        await self._send({**message, "body": content})


def _short_json(body: bytes) -> bytes:
    if len(body) <= LONGEST:
        return body
    try:
        content = json.loads(body)
    except ValueError:
        return body
    return json.dumps(_shortened_in(content)).encode()


def _short_event(body: bytes) -> bytes:
    return b"data: " + _short_json(body.removeprefix(b"data: ").strip()) + b"\n\n"


def _shortened_in(content: Any) -> Any:
    if isinstance(content, str):
        return shortened(content)
    if isinstance(content, list):
        return [_shortened_in(one) for one in content]
    if isinstance(content, dict):
        return {name: _shortened_in(one) for name, one in content.items()}
    return content


def _naming_fields(original: Callable[..., Any]) -> Callable[..., Any]:
    async def validation_error(request: Any, error: Any) -> Any:
        response = await original(request, error)
        content = json.loads(response.body)
        holder = content.get("error", content) if isinstance(content, dict) else None
        if not isinstance(holder, dict) or not isinstance(holder.get("message"), str):
            return response
        holder["message"] = shortened(named(error.errors()))
        return type(response)(content, status_code=response.status_code)

    return validation_error
