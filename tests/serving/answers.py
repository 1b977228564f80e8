"""Requests to all three APIs of a server, and what is compared of their answers."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import requests

from tests.support.server import Server

PATHS = {
    "generate": "/generate",
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
}
"""The APIs; the first is SGLang's own."""
LOGPROB_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Answer:
    """What a server answered, as far as it does not depend on when and how fast.

    Attributes
    ----------
    status : int
        HTTP status.
    choices : list of dict
        Token ids, text, finish reason and matched stop of each answer.
    more : JSON
        The whole response without identifiers, times, and reports about caches and drafts; the
        text of an error.
    raw : JSON
        The whole response; a stream's is put together.
    """

    status: int
    choices: list[dict[str, Any]]
    more: Any
    raw: Any


def ask(server: Server, api: str, body: Mapping[str, Any]) -> Answer:
    """Send one request; a stream is read to its end."""
    response = requests.post(server.url + PATHS[api], json=body, timeout=600)
    if response.status_code != 200:
        return Answer(response.status_code, [], response.text, response.text)
    if "text/event-stream" in response.headers["content-type"]:
        return answer_of(api, _events(response.text), streamed=True)
    return answer_of(api, response.json())


def answer_of(api: str, response: Any, *, streamed: bool = False) -> Answer:
    """The answer that a response's JSON holds, or the list of a stream's events."""
    raw = _whole(api, response) if streamed else response
    return Answer(200, _choices(api, raw), _lasting(raw), raw)


def ask_all(server: Server, jobs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Answer]:
    """Send many requests, eight of them at once; answers in order."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda job: ask(server, *job), jobs))


def _events(text: str) -> list[Any]:
    """JSON of a stream's events."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]", text[-400:]
    return [json.loads(event) for event in data[:-1]]


def _whole(api: str, events: list[Any]) -> Any:
    """One response out of a stream's events."""
    if api == "generate":
        return _last_of_each(events)
    choices: dict[int, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    for event in events:
        assert "error" not in event, event
        whole.update({name: event[name] for name in ("usage", "sglext") if event.get(name)})
        for part in event["choices"]:
            _join(choices.setdefault(part["index"], {"index": part["index"], "text": ""}), part)
    return {**whole, "choices": [choices[index] for index in sorted(choices)]}


def _last_of_each(events: list[Any]) -> Any:
    """The last event of each answer; each event begins with what the one before it had."""
    last: dict[int, Any] = {}
    for event in events:
        index = event.get("index", 0)
        if index in last:
            before = last[index]["output_ids"]
            assert event["output_ids"][: len(before)] == before
        last[index] = event
    found = [last[index] for index in sorted(last)]
    return found if len(found) > 1 else found[0]


def _join(choice: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Add one event's part to a choice."""
    delta = part.get("delta") or {}
    choice["text"] += part.get("text") or delta.get("content") or ""
    choice.setdefault("token_ids", []).extend(part.get("token_ids") or [])
    for name in ("finish_reason", "matched_stop"):
        if part.get(name) is not None:
            choice[name] = part[name]
    for name, entries in (part.get("logprobs") or {}).items():
        choice.setdefault("logprobs", {}).setdefault(name, []).extend(entries or [])


def _choices(api: str, raw: Any) -> list[dict[str, Any]]:
    if api == "generate":
        return [_native_choice(item) for item in (raw if isinstance(raw, list) else [raw])]
    ids = (raw.get("sglext") or {}).get("output_ids")
    return [
        {
            "ids": ids[place] if api == "chat" else choice["token_ids"],
            "text": choice["message"]["content"] if "message" in choice else choice["text"],
            "finish_reason": choice.get("finish_reason"),
            "matched_stop": choice.get("matched_stop"),
        }
        for place, choice in enumerate(raw["choices"])
    ]


def _native_choice(item: Mapping[str, Any]) -> dict[str, Any]:
    reason = item["meta_info"]["finish_reason"]
    return {
        "ids": item["output_ids"],
        "text": item["text"],
        "finish_reason": reason["type"],
        "matched_stop": reason.get("matched"),
    }


_PASSING = {
    "cached_tokens",
    "cached_tokens_details",
    "created",
    "id",
    "model",
    "specvlm",
}
_PASSING_ENDS = ("_latency", "_throughput", "_time", "_ts")
"""Names of what no two answers share, or what drafts and caches are free to change."""


def _passes(name: str, value: Any) -> bool:
    # An extension that held nothing but a report about drafts.
    is_empty = name == "sglext" and not value
    return is_empty or name in _PASSING or name.startswith("spec_") or name.endswith(_PASSING_ENDS)


def _lasting(value: Any) -> Any:
    """A response without what passes; arrays in base64 become lists."""
    if isinstance(value, dict):
        entries = {key: _lasting(entry) for key, entry in value.items()}
        kept = {key: entry for key, entry in entries.items() if not _passes(key, entry)}
        for key in [key for key in kept if key.endswith("_b64") and isinstance(kept[key], str)]:
            numbers = np.frombuffer(base64.b64decode(kept[key]), kept[f"{key}_dtype"])
            kept[key] = numbers.tolist()
        return kept
    if isinstance(value, list):
        return [_lasting(entry) for entry in value]
    return value


def differences(plain: Answer, other: Answer) -> list[str]:
    """What differs, one line each; empty if the answers are alike."""
    if plain.status != other.status:
        return [f"status {plain.status}, {other.status}: {str(other.more)[:160]}"]
    found = list(_compared(plain.choices, other.choices, "answer"))
    return found or list(_compared(plain.more, other.more, ""))


def _compared(plain: Any, other: Any, where: str) -> Iterator[str]:
    if _is_impossible(plain) and _is_impossible(other):
        return
    if isinstance(plain, dict) and isinstance(other, dict):
        plain, other = _possible(plain), _possible(other)
        for key in sorted(set(plain) | set(other)):
            if key not in plain or key not in other:
                side = "plain" if key in plain else "SPECVLM"
                yield f"{where}.{key} is in {side}'s answer only"
            else:
                yield from _compared(plain[key], other[key], f"{where}.{key}")
    elif isinstance(plain, list) and isinstance(other, list):
        if where.endswith("ids") and plain != other:
            yield f"{where}: {plain}, {other}"
        elif len(plain) != len(other):
            yield f"{where} has {len(plain)}, {len(other)} entries"
        else:
            for place, (first, second) in enumerate(zip(plain, other, strict=True)):
                yield from _compared(first, second, f"{where}[{place}]")
    elif _is_number(plain) and _is_number(other):
        if not math.isclose(plain, other, rel_tol=0.0, abs_tol=LOGPROB_TOLERANCE):
            yield f"{where}: {plain}, {other}"
    elif plain != other:
        yield f"{where}: {plain!r}, {other!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, float)


def _is_impossible(entry: Any) -> bool:
    """Whether this is a log probability of a token that was ruled out: which one, is nothing."""
    if isinstance(entry, dict):
        return "logprob" in entry and _ruled_out(entry["logprob"])
    return (
        isinstance(entry, list)
        and len(entry) == 3
        and isinstance(entry[1], int)
        and _ruled_out(entry[0])
    )


def _possible(entries: dict[str, Any]) -> dict[str, Any]:
    """Log probabilities by token without those of tokens that were ruled out."""
    if not entries or not all(_is_number(value) or value is None for value in entries.values()):
        return entries
    return {token: value for token, value in entries.items() if not _ruled_out(value)}


def _ruled_out(logprob: Any) -> bool:
    return logprob is None or (_is_number(logprob) and logprob < -1000)


def accepted(answers: Sequence[Answer]) -> tuple[int, int]:
    """Tokens that verify rounds emitted, bonus included, and these rounds, over all answers."""
    tokens = rounds = 0
    for report in (report for answer in answers for report in _draft_reports(answer.raw)):
        tokens += report["spec_num_correct_drafts"] + report["spec_verify_ct"]
        rounds += report["spec_verify_ct"]
    return tokens, rounds


def _draft_reports(raw: Any) -> list[Mapping[str, Any]]:
    """What a response says about its drafts: one object a choice."""
    if isinstance(raw, dict):
        if "spec_verify_ct" in raw:
            return [raw]
        raw = list(raw.values())
    return (
        [found for entry in raw for found in _draft_reports(entry)] if isinstance(raw, list) else []
    )
