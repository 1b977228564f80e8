"""Jobs sent to a server: whole, streamed, cut where the job says, and what came back."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from specvlm_sglang.tools.client import headers
from specvlm_sglang.tools.soak.load import (
    ABORT,
    ABORT_ALL,
    DUPLICATE,
    EARLY,
    FLUSH,
    PREFILL,
    ROUND,
    SLOW,
    STREAM,
    UPLOAD,
    Job,
)

SECONDS = 180.0
"""An answer that takes longer is called a hang."""
_CHAT = "/v1/chat/completions"
_EARLY_SECONDS, _PREFILL_SECONDS, _SLOW_SECONDS = 0.15, 1.5, 4.0
_SLOW_BYTES = 2048
"""Receive buffer of a client that stops reading."""


@dataclass(frozen=True)
class Outcome:
    """How a job went.

    Attributes
    ----------
    kind
        "answered", "cut" (as planned), "aborted" (by an abort, its own or of all), "refused" (a
        flush while requests run), or "failed".
    texts
        Of an answer, by choice.
    said
        What failed, or why a draft was not used.
    """

    kind: str
    texts: tuple[str, ...] = ()
    said: str = ""


class Sender:
    """Sends jobs to one server.

    Parameters
    ----------
    url
        Of the server.
    seconds
        How long an answer may take.
    """

    def __init__(self, url: str, seconds: float = SECONDS) -> None:
        self._url = httpx.URL(url)
        self._seconds = seconds
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx.AsyncClient(
            base_url=url, timeout=seconds, headers=headers(), limits=limits
        )
        self.aborts_of_all = 0

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def send(self, job: Job) -> Outcome:
        """Send one job; never raises."""
        ways: dict[str, Callable[[Job], Coroutine[Any, Any, Outcome]]] = {
            STREAM: self._stream,
            DUPLICATE: self._twice,
            UPLOAD: self._cut_upload,
            EARLY: self._cut_after,
            PREFILL: self._cut_after,
            ROUND: self._stream,
            ABORT: self._abort,
            SLOW: self._stop_reading,
            FLUSH: self._flush,
            ABORT_ALL: self._abort_all,
        }
        aborts = self.aborts_of_all
        try:
            outcome = await asyncio.wait_for(ways.get(job.ending, self._whole)(job), self._seconds)
        except TimeoutError:
            return Outcome("failed", said=f"no end within {self._seconds:g} s")
        except Exception as error:
            return Outcome("failed", said=f"{type(error).__name__}: {error}")
        if outcome.kind == "aborted" and job.ending != ABORT and aborts == self.aborts_of_all:
            return Outcome("failed", said="aborted, and nobody asked for it")
        return outcome

    def _body(self, job: Job, **more: Any) -> dict[str, Any]:
        if job.specvlm:
            more["custom_params"] = {"specvlm": job.specvlm}
        return job.question.body(**more)

    async def _whole(self, job: Job) -> Outcome:
        return _answered(await self._client.post(_CHAT, json=self._body(job)))

    async def _twice(self, job: Job) -> Outcome:
        first, second = await asyncio.gather(self._whole(job), self._whole(job))
        if job.question.is_greedy and first.texts and second.texts and first.texts != second.texts:
            return Outcome("failed", said=f"twins differ: {first.texts} and {second.texts}")
        return first if first.kind == "failed" else second

    async def _stream(self, job: Job) -> Outcome:
        """Read a stream; `ROUND` closes it after some pieces."""
        pieces: dict[int, list[str]] = {}
        left = 1 + int(8 * job.when) if job.ending == ROUND else None
        body = self._body(job, stream=True)
        async with self._client.stream("POST", _CHAT, json=body) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                return _answered(response)
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    return _error(str(chunk["error"]))
                for choice in chunk["choices"]:
                    pieces.setdefault(choice["index"], []).append(
                        choice["delta"].get("content") or ""
                    )
                    if choice.get("finish_reason") == "abort":
                        return Outcome("aborted")
                if left is not None:
                    left -= 1
                    if left == 0:
                        return Outcome("cut")
        return Outcome("answered", tuple("".join(pieces[index]) for index in sorted(pieces)))

    async def _cut_after(self, job: Job) -> Outcome:
        longest = _EARLY_SECONDS if job.ending == EARLY else _PREFILL_SECONDS
        streamed = self._client.post(_CHAT, json=self._body(job, stream=job.when < 0.5))
        try:
            return _answered(await asyncio.wait_for(streamed, longest * job.when))
        except TimeoutError:
            return Outcome("cut")

    async def _abort(self, job: Job) -> Outcome:
        rid = uuid.uuid4().hex
        asked = asyncio.create_task(self._client.post(_CHAT, json=self._body(job, rid=rid)))
        await asyncio.wait([asked], timeout=_PREFILL_SECONDS * job.when)
        await self._client.post("/abort_request", json={"rid": rid})
        return _answered(await asked)

    async def _abort_all(self, job: Job) -> Outcome:
        self.aborts_of_all += 1
        response = await self._client.post("/abort_request", json={"rid": "", "abort_all": True})
        return Outcome("answered") if response.is_success else _error(response.text)

    async def _flush(self, job: Job) -> Outcome:
        response = await self._client.post("/flush_cache")
        return Outcome("answered" if response.is_success else "refused")

    async def _cut_upload(self, job: Job) -> Outcome:
        """Send a part of the body, then nothing; hang up."""
        _, writer = await self._raw(self._body(job), part=job.when)
        await asyncio.sleep(0.2)
        await _hang_up(writer)
        return Outcome("cut")

    async def _stop_reading(self, job: Job) -> Outcome:
        """Ask for a stream, read a little, stop; hang up later."""
        reader, writer = await self._raw(self._body(job, stream=True), part=1.0)
        await reader.read(64)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(_SLOW_SECONDS * job.when)
        await _hang_up(writer)
        return Outcome("cut")

    async def _raw(
        self, body: dict[str, Any], part: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port, content = self._url.host, self._url.port, json.dumps(body).encode()
        reader, writer = await asyncio.open_connection(host, port, limit=_SLOW_BYTES)
        fields = {
            "Host": f"{host}:{port}",
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **headers(),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        writer.write(f"POST {_CHAT} HTTP/1.1\r\n{head}\r\n".encode())
        writer.write(content[: int(len(content) * part)])
        await writer.drain()
        return reader, writer


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


def _error(said: str) -> Outcome:
    return Outcome("aborted") if "abort" in said.lower() else Outcome("failed", said=said[:500])


def _answered(response: httpx.Response) -> Outcome:
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        return Outcome("answered")
    if not response.is_success:
        return _error(f"{response.status_code}: {response.text}")
    choices = sorted(response.json()["choices"], key=lambda choice: int(choice["index"]))
    if any(choice["finish_reason"] == "abort" for choice in choices):
        return Outcome("aborted")
    return Outcome("answered", tuple(choice["message"]["content"] or "" for choice in choices))


def spread(jobs: int, seed: int) -> list[float]:
    """Starting delays in seconds of the first ``jobs``, so that they do not march in step."""
    draw = random.Random(seed)
    return [draw.random() for _ in range(jobs)]
