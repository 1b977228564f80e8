"""One streamed answer of a server's ``/generate``, with its token ids, timed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

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


def ask(
    url: str,
    prompt: str,
    videos: list[str],
    max_tokens: int,
    *,
    custom_params: dict[str, Any] | None = None,
    on_first: Callable[[], None] = lambda: None,
) -> Answer:
    """Ask a server greedily and stream its answer.

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
    RuntimeError
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
            raise RuntimeError(f"{response.status_code}: {response.read().decode()[:500]}")
        for line in response.iter_lines():
            if not line.startswith("data:") or line == "data: [DONE]":
                continue
            piece = json.loads(line[5:])
            if "error" in piece:
                raise RuntimeError(str(piece["error"]))
            last = time.perf_counter()
            # The report comes with the first token; some pieces repeat it.
            report = (piece["meta_info"].get("specvlm") or [report])[0] or report
            if first is None:
                first, first_tokens = last, piece["meta_info"]["completion_tokens"]
                on_first()
    if first is None or last is None:
        raise RuntimeError("the server sent no token")
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
