"""One question about one clip through the OpenAI streaming API, timed."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai


@dataclass(frozen=True)
class Timed:
    """A streamed answer.

    Attributes
    ----------
    text
        The answer.
    pieces
        What each message of the stream brought: with SPECVLM, one verify round's tokens.
    first_token_seconds
        From the request to the first piece.
    tokens_per_second
        Of decoding: tokens after the first over the time after the first piece.
    """

    text: str
    pieces: tuple[str, ...]
    first_token_seconds: float
    tokens_per_second: float


def messages_of(video: Path, question: str) -> list[dict[str, Any]]:
    """The chat messages that ask ``question`` about the mp4 file ``video``."""
    url = f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode()}"
    content = [
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "text", "text": question},
    ]
    return [{"role": "user", "content": content}]


def stream(
    url: str,
    messages: list[dict[str, Any]],
    max_tokens: int,
    *,
    on_piece: Callable[[str, list[str]], None] | None = None,
) -> Timed:
    """Ask greedily and stream.

    ``on_piece`` sees each piece as it comes, and the texts of its tokens, for which log
    probabilities are asked; a timed answer should do without.
    """
    client: Any = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    started = time.perf_counter()
    pieces: list[str] = []
    first = last = started
    tokens = 0
    for chunk in client.chat.completions.create(
        model="default",
        messages=messages,
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=on_piece is not None,
    ):
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
        piece = (chunk.choices[0].delta.content or "") if chunk.choices else ""
        if piece:
            last = time.perf_counter()
            first = first if pieces else last
            pieces.append(piece)
            if on_piece is not None:
                logprobs = chunk.choices[0].logprobs
                entries = logprobs.content if logprobs is not None else None
                on_piece(piece, [entry.token for entry in entries or ()])
    rate = (tokens - 1) / (last - first) if len(pieces) > 1 else 0.0
    return Timed("".join(pieces), tuple(pieces), first - started, rate)


def meta_info(url: str, messages: list[dict[str, Any]], max_tokens: int) -> dict[str, Any]:
    """SGLang's ``meta_info`` of the same answer, which it sends only without streaming."""
    client: Any = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(
        model="default",
        messages=messages,
        max_tokens=max_tokens,
        temperature=0,
        extra_body={"return_meta_info": True},
    )
    found: dict[str, Any] = answer.choices[0].model_dump()["meta_info"]
    return found
