"""One streamed answer, from a server that speaks SGLang's protocol with canned pieces."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from specvlm_sglang.tools.chat import chat, stream
from specvlm_sglang.tools.client import (
    API_KEY_VARIABLE,
    ask,
    flush_cache,
    get_json,
    specvlm_state,
)
from specvlm_sglang.tools.errors import ToolError
from specvlm_sglang.tools.server import HOST, free_port

REPORT = {"video_tokens": 512, "kept_video_tokens": 51, "cold": None}


def piece(ids: list[int], **meta: Any) -> dict[str, Any]:
    info = {"completion_tokens": len(ids), "prompt_tokens": 600, "cached_tokens": 3, **meta}
    return {"text": "x" * len(ids), "output_ids": ids, "meta_info": info}


@contextmanager
def serving(
    pieces: list[dict[str, Any]], status: int = 200, key: str | None = None
) -> Iterator[tuple[str, list[Any]]]:
    """Address of a server that answers everything with ``pieces``, and the bodies it got.

    With ``key`` it answers 401 to whoever does not send it.
    """
    bodies: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(b'{"internal_states": [{}]}')

        def answer(self, content: bytes) -> None:
            allowed = key is None or self.headers["Authorization"] == f"Bearer {key}"
            self.send_response(status if allowed else 401)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(content if allowed else b'{"error": "Unauthorized"}')

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            if key is not None:
                self.answer(b'{"choices": []}')
                return
            bodies.append(json.loads(sent))
            self.send_response(status)
            self.end_headers()
            for item in pieces:
                self.wfile.write(f"data: {json.dumps(item)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_answer_has_the_last_pieces_tokens_and_report() -> None:
    stale = {**REPORT, "cold": "before it was prefilled again"}
    pieces = [
        piece([1], specvlm=stale),
        piece([1, 2, 3], specvlm=REPORT),
        piece([1, 2, 3, 4], specvlm=REPORT, spec_verify_ct=2),
    ]
    firsts: list[bool] = []
    with serving(pieces) as (url, _):
        answer = ask(url, "p", ["data:"], 8, on_first=lambda: firsts.append(True))
    assert answer.ids == (1, 2, 3, 4)
    assert (answer.rounds, answer.decode_tokens) == (2, 3)
    assert (answer.video_tokens, answer.kept_video_tokens, answer.cold) == (512, 51, None)
    assert (answer.prompt_tokens, answer.cached_tokens) == (600, 3)
    assert 0 < answer.first_token_seconds <= answer.seconds
    assert firsts == [True]


def test_plain_decoding_has_one_round_per_token_after_the_first() -> None:
    with serving([piece([1]), piece([1, 2]), piece([1, 2, 3])]) as (url, _):
        answer = ask(url, "p", [], 8)
    assert answer.rounds == 2
    assert answer.video_tokens is None


def test_requests_are_greedy_and_carry_the_options_of_their_configuration() -> None:
    with serving([piece([1])]) as (url, bodies):
        ask(url, "p", ["v"], 8)
        ask(url, "p", ["v"], 8, custom_params={"specvlm": {"retention": 0.5}})
    assert bodies[0]["sampling_params"] == {"temperature": 0, "max_new_tokens": 8}
    assert bodies[1]["sampling_params"]["custom_params"] == {"specvlm": {"retention": 0.5}}
    assert bodies[0]["video_data"] == ["v"]


def test_a_refusal_an_error_and_silence_are_said() -> None:
    with serving([], status=400) as (url, _), pytest.raises(ToolError, match=r"^400: "):
        ask(url, "p", [], 8)
    with (
        serving([{"error": {"message": "too long"}}]) as (url, _),
        pytest.raises(ToolError, match="too long"),
    ):
        ask(url, "p", [], 8)
    with serving([]) as (url, _), pytest.raises(ToolError, match="sent no token"):
        ask(url, "p", [], 8)


QUESTIONS: dict[str, Callable[[str], object]] = {
    "ask": lambda url: ask(url, "p", [], 8),
    "stream": lambda url: stream(url, [], 8),
    "chat": lambda url: chat(url, [], 8),
    "state": specvlm_state,
    "flush": flush_cache,
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_server_that_is_not_there_is_told(name: str) -> None:
    with pytest.raises(ToolError, match=r"Connection|refused"):
        QUESTIONS[name](f"http://{HOST}:{free_port()}")


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("sent", [None, "wrong"])
def test_a_server_that_wants_another_key_is_told_in_one_sentence(
    name: str, sent: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    if sent is not None:
        monkeypatch.setenv(API_KEY_VARIABLE, sent)
    with serving([], key="secret") as (url, _), pytest.raises(ToolError) as refused:
        QUESTIONS[name](url)
    assert str(refused.value) == (
        "the server answers 401: give its key with --api-key or in OPENAI_API_KEY"
    )


@pytest.mark.parametrize("name", ["chat", "state", "flush"])
def test_the_key_of_the_environment_opens_a_server(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, "secret")
    with serving([], key="secret") as (url, _):
        QUESTIONS[name](url)


def test_a_given_key_comes_before_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, "other")
    with serving([], key="secret") as (url, _):
        assert get_json(url, "/server_info", api_key="secret") == {"internal_states": [{}]}
        assert chat(url, [], 8, api_key="secret")["choices"] == []
