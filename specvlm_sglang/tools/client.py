"""Questions to a running server through its own interface: answers with their token ids, state."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from specvlm_sglang.tools.errors import ToolError, told_as_tool_errors

SECONDS = 1800.0
"""Longest wait for one message of a server."""
API_KEY_VARIABLE = "OPENAI_API_KEY"
"""Where the key of a server with ``--api-key`` is looked for; the OpenAI client looks there too."""


def key_of(api_key: str | None = None) -> str | None:
    """Return the key for a server: the given one, or else the environment's; None without any."""
    return api_key or os.environ.get(API_KEY_VARIABLE) or None


def headers(api_key: str | None = None) -> dict[str, str]:
    """Headers that carry `key_of`."""
    key = key_of(api_key)
    return {"Authorization": f"Bearer {key}"} if key else {}


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


@told_as_tool_errors(httpx.HTTPError)
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
    with httpx.stream(
        "POST", f"{url}/generate", json=body, timeout=SECONDS, headers=headers()
    ) as response:
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            response.raise_for_status()
        if response.status_code != httpx.codes.OK:
            raise ToolError(f"{response.status_code}: {response.read().decode()[:500]}")
        for line in response.iter_lines():
            if not line.startswith("data:") or line == "data: [DONE]":
                continue
            piece = json.loads(line[5:])
            if "error" in piece:
                raise ToolError(str(piece["error"]))
            last = time.perf_counter()
            if first is None:
                first, first_tokens = last, piece["meta_info"]["completion_tokens"]
                on_first()
    if first is None or last is None:
        raise ToolError("the server sent no token")
    meta = piece["meta_info"]
    report = meta.get("specvlm") or {}
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


@told_as_tool_errors(httpx.HTTPError)
def get_json(url: str, path: str, *, api_key: str | None = None) -> dict[str, Any]:
    """What a server says under ``path``, such as ``/server_info``; the key as `key_of` has it.

    Raises
    ------
    ToolError
        The server refused or cannot be reached.
    """
    answer = httpx.get(f"{url}{path}", timeout=600, headers=headers(api_key))
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def specvlm_state(url: str) -> dict[str, Any]:
    """SPECVLM's part of ``/server_info``; empty for plain decoding."""
    found: dict[str, Any] = get_json(url, "/server_info")["internal_states"][0].get("specvlm") or {}
    return found


@told_as_tool_errors(httpx.HTTPError)
def flush_cache(url: str) -> None:
    """Empty the radix cache and what the draft remembers of videos, once the server is idle.

    A step may still be running when its last answer is out; without ``timeout`` the server would
    refuse then.

    Raises
    ------
    ToolError
        The server refused or cannot be reached.
    """
    answer = httpx.post(
        f"{url}/flush_cache", params={"timeout": 60}, timeout=600, headers=headers()
    )
    answer.raise_for_status()
