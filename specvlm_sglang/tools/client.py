"""Questions to a running server: its own ``/generate`` and the OpenAI API, greedy and timed."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

from specvlm_sglang.tools.errors import ToolError

SECONDS = 1800.0
"""Longest wait for one message of a server."""


@dataclass(frozen=True)
class Answer:
    """A greedy answer.

    Attributes
    ----------
    ids
        Its tokens, the end token included.
    text
        The same as text.
    first_token_seconds, seconds
        From the request to the first piece, and to the last.
    decode_tokens
        Tokens that came after the first piece (which holds the prefill's token).
    rounds
        Verify rounds; for plain decoding, target passes after the prefill.
    prompt_tokens, cached_tokens
        Length of the prompt, and how much of it came out of the radix cache.
    video_tokens, kept_video_tokens
        N and K as a SPECVLM server reports them; None for plain decoding.
    cold
        Why the request had no draft; None where it had one, and for plain decoding.
    """

    ids: tuple[int, ...]
    text: str
    first_token_seconds: float
    seconds: float
    decode_tokens: int
    rounds: int
    prompt_tokens: int
    cached_tokens: int
    video_tokens: int | None = None
    kept_video_tokens: int | None = None
    cold: str | None = None

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second after the first piece; None where nothing came after it."""
        passed = self.seconds - self.first_token_seconds
        return self.decode_tokens / passed if self.decode_tokens and passed > 0 else None


@dataclass(frozen=True)
class Streamed:
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


@contextmanager
def _refusals_told() -> Iterator[None]:
    """What a server refuses, and a server that cannot be reached, as a `ToolError`."""
    try:
        yield
    except (openai.APIError, httpx.HTTPError) as error:
        raise ToolError(str(error)) from error


@_refusals_told()
def ask(
    url: str,
    prompt: str,
    videos: list[str],
    max_tokens: int,
    *,
    custom_params: dict[str, Any] | None = None,
    on_first: Callable[[], None] = lambda: None,
) -> Answer:
    """Ask ``/generate`` greedily and stream the answer, with its token ids.

    Parameters
    ----------
    url
        Of the server.
    prompt
        Rendered by the model's chat template, one placeholder a video.
    videos
        Data URLs or paths.
    max_tokens
        Length limit of the answer.
    custom_params
        SGLang's field of that name; left out where None.
    on_first
        Called at the first piece.

    Raises
    ------
    ToolError
        The server refused or broke off; the message is its own.
    """
    sampling: dict[str, Any] = {"temperature": 0, "max_new_tokens": max_tokens}
    if custom_params is not None:
        sampling["custom_params"] = custom_params
    body = {"text": prompt, "video_data": videos, "sampling_params": sampling, "stream": True}
    started = time.perf_counter()
    first = last = None
    first_tokens = 0
    piece: dict[str, Any] = {}
    report: dict[str, Any] = {}
    with httpx.stream("POST", f"{url}/generate", json=body, timeout=SECONDS) as response:
        if response.status_code != httpx.codes.OK:
            raise ToolError(f"{response.status_code}: {response.read().decode()[:500]}")
        for line in response.iter_lines():
            if not line.startswith("data:") or line == "data: [DONE]":
                continue
            piece = json.loads(line[5:])
            if "error" in piece:
                raise ToolError(str(piece["error"]))
            last = time.perf_counter()
            # The report comes with the first token; some pieces repeat it.
            report = (piece["meta_info"].get("specvlm") or [report])[0] or report
            if first is None:
                first, first_tokens = last, piece["meta_info"]["completion_tokens"]
                on_first()
    if first is None or last is None:
        raise ToolError("the server sent no token")
    meta = piece["meta_info"]
    tokens = meta["completion_tokens"]
    return Answer(
        ids=tuple(piece["output_ids"]),
        text=piece["text"],
        first_token_seconds=first - started,
        seconds=last - started,
        decode_tokens=tokens - first_tokens,
        rounds=meta.get("spec_verify_ct") or tokens - 1,
        prompt_tokens=meta["prompt_tokens"],
        cached_tokens=meta.get("cached_tokens") or 0,
        video_tokens=report.get("video_tokens"),
        kept_video_tokens=report.get("kept_video_tokens"),
        cold=report.get("cold"),
    )


@_refusals_told()
def stream(
    url: str,
    messages: list[dict[str, Any]],
    max_tokens: int,
    *,
    on_piece: Callable[[str, list[str]], None] | None = None,
) -> Streamed:
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
    return Streamed("".join(pieces), first - started, rate)


@_refusals_told()
def chat(
    url: str, messages: list[dict[str, Any]], max_tokens: int, **fields: Any
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
    fields
        Further ones that SGLang adds to the API, such as ``custom_params``.

    Raises
    ------
    ToolError
        The server refused or cannot be reached; the message is its own.
    """
    extra = {"return_meta_info": True, **fields}
    answer = _completions(url).create(**_greedy(messages, max_tokens), extra_body=extra)
    found: dict[str, Any] = answer.model_dump()
    return found


def _completions(url: str) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0).chat.completions


def _greedy(messages: list[dict[str, Any]], max_tokens: int) -> dict[str, Any]:
    return {
        "model": "default",
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": 0,
    }


@_refusals_told()
def get_json(url: str, path: str) -> dict[str, Any]:
    """What a server says under ``path``, such as ``/server_info``.

    Raises
    ------
    ToolError
        The server refused or cannot be reached.
    """
    answer = httpx.get(f"{url}{path}", timeout=600)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def specvlm_state(url: str) -> dict[str, Any]:
    """SPECVLM's part of ``/server_info``; empty for plain decoding."""
    found: dict[str, Any] = get_json(url, "/server_info")["internal_states"][0].get("specvlm") or {}
    return found


@_refusals_told()
def flush_cache(url: str) -> None:
    """Empty the radix cache and what the draft remembers of videos, once the server is idle.

    A step may still be running when its last answer is out; without ``timeout`` the server would
    refuse then.

    Raises
    ------
    ToolError
        The server refused or cannot be reached.
    """
    answer = httpx.post(f"{url}/flush_cache", params={"timeout": 60}, timeout=600)
    answer.raise_for_status()
