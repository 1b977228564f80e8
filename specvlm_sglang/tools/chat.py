"""Questions to a running server through the OpenAI API, greedy."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from specvlm_sglang.tools.client import key_of
from specvlm_sglang.tools.errors import told_as_tool_errors


@dataclass(frozen=True)
class Timed:
    """An answer of the OpenAI API.

    Attributes
    ----------
    text
        The answer.
    first_token_seconds
        From the request to the first piece.
    tokens_per_second
        Of decoding: tokens after the first over the time after the first piece.
    """

    text: str
    first_token_seconds: float
    tokens_per_second: float


def data_url(video: Path) -> str:
    """The mp4 file as a data URL, as a client sends it."""
    return f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()).decode()}"


def messages_of(video: Path, question: str) -> list[dict[str, Any]]:
    """The chat messages that ask ``question`` about the mp4 file ``video``."""
    content = [
        {"type": "video_url", "video_url": {"url": data_url(video)}},
        {"type": "text", "text": question},
    ]
    return [{"role": "user", "content": content}]


@told_as_tool_errors(openai.APIError)
def stream(
    url: str,
    messages: list[dict[str, Any]],
    max_tokens: int,
    *,
    on_piece: Callable[[str, list[str]], None] | None = None,
) -> Timed:
    """Ask the OpenAI API greedily and stream.

    ``on_piece`` sees each piece as it comes (with SPECVLM, one verify round's tokens), and the
    texts of its tokens, for which log probabilities are asked; a timed answer should do without.

    Raises
    ------
    ToolError
        The server refused or broke off; the message is its own.
    """
    started = time.perf_counter()
    pieces: list[str] = []
    first = last = started
    tokens = 0
    for chunk in _completions(url).create(
        **_greedy(messages, max_tokens),
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
    return Timed("".join(pieces), first - started, rate)


@told_as_tool_errors(openai.APIError)
def chat(
    url: str,
    messages: list[dict[str, Any]],
    max_tokens: int,
    *,
    api_key: str | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Ask the OpenAI API greedily for a whole answer, as SGLang sends it.

    Its first choice has ``meta_info``, which SGLang sends only without streaming.

    Parameters
    ----------
    url
        Of the server.
    messages
        As from `messages_of`.
    max_tokens
        Length limit of the answer.
    api_key
        Of a server with ``--api-key``, as `key_of` has it.
    fields
        Further ones that SGLang adds to the API, such as ``custom_params``.

    Raises
    ------
    ToolError
        The server refused or cannot be reached; the message is its own.
    """
    extra = {"return_meta_info": True, **fields}
    answer = _completions(url, api_key).create(**_greedy(messages, max_tokens), extra_body=extra)
    found: dict[str, Any] = answer.model_dump()
    return found


def _completions(url: str, api_key: str | None = None) -> Any:
    # The client asks for some key, the server only where it was started with one.
    key = key_of(api_key) or "none"
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0).chat.completions


def _greedy(messages: list[dict[str, Any]], max_tokens: int) -> dict[str, Any]:
    return {
        "model": "default",
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": 0,
    }
