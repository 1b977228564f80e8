"""Errors on their way out: short, without the media of the request, with the field's name."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient
from pydantic import BaseModel

from specvlm_sglang.host import error_text
from specvlm_sglang.host.error_text import LONGEST, named, shortened

MEDIA = base64.b64encode(os.urandom(30_000)).decode()


class Body(BaseModel):
    count: int
    video: str = ""


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.add_middleware(error_text.ShortErrors)

    @app.exception_handler(RequestValidationError)
    async def as_sglang_does(request: Any, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"message": f"{error} {error.errors()}", "code": 400}, 400)

    handlers = app.exception_handlers
    handlers[RequestValidationError] = error_text._naming_fields(handlers[RequestValidationError])

    @app.post("/echo/{status}")
    async def echo(status: int, body: Body) -> JSONResponse:
        return JSONResponse({"error": {"message": f"bad video {body.video}"}}, status)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            yield 'data: {"text": "' + MEDIA + '"}\n\n'
            yield 'data: {"error": {"message": "cannot read ' + MEDIA + '", "code": 400}}\n\n'
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/text/{size}")
    async def text(size: int) -> JSONResponse:
        return JSONResponse({"message": "word " * size}, 400)

    return TestClient(app)


@pytest.mark.parametrize("status", [400, 500])
def test_media_in_an_error_are_cut(client: TestClient, status: int) -> None:
    answer = client.post(f"/echo/{status}", json={"count": 1, "video": f"data:video/mp4,{MEDIA}"})
    assert answer.status_code == status
    message = answer.json()["error"]["message"]
    assert message.startswith("bad video data:video/mp4,")
    assert f"({len(MEDIA)} characters)" in message
    assert len(message) < 500


def test_an_answer_is_left_alone(client: TestClient) -> None:
    answer = client.post("/echo/200", json={"count": 1, "video": MEDIA})
    assert answer.json()["error"]["message"] == f"bad video {MEDIA}"


def test_a_wrong_field_is_named_and_its_value_not_repeated(client: TestClient) -> None:
    answer = client.post("/echo/200", json={"count": MEDIA})
    assert answer.status_code == 400
    message = answer.json()["message"]
    assert message.startswith("count: Input should be a valid integer")
    assert len(message) < 500
    assert MEDIA[:100] not in message


def test_an_error_in_a_stream_is_short_and_the_rest_of_the_stream_is_whole(
    client: TestClient,
) -> None:
    first, error, end, _ = client.get("/stream").text.split("\n\n")
    assert MEDIA in first
    assert error.startswith('data: {"error"')
    assert "cannot read" in error
    assert len(error) < 500
    assert end == "data: [DONE]"


@pytest.mark.parametrize("size", [1, 89, 90, 5000])
def test_long_sentences_end_where_they_are_cut(client: TestClient, size: int) -> None:
    message = client.get(f"/text/{size}").json()["message"]
    assert message == ("word " * size if size <= 90 else message)
    assert len(message) <= LONGEST


def test_a_path_and_a_short_token_are_no_media() -> None:
    said = "no such file: /videos/2024/holidays/clip-with-a-long-name.mp4, key sk-0123456789abcdef"
    assert shortened(said) == said


def test_the_validators_own_names_are_left_out() -> None:
    place = ("body", "function-after[build_struct(), SlowDown]", "forward_sleep_time")
    errors = [
        {"loc": ("body", "is-instance[SlowDown]"), "msg": "no", "type": "is_instance_of"},
        {"loc": place, "msg": "Field required", "type": "missing"},
    ]
    assert named(errors) == "forward_sleep_time: Field required"


def test_only_the_first_fields_of_many_are_named() -> None:
    errors = [{"loc": ("body", "messages", n), "msg": "bad"} for n in range(9)]
    assert named(errors) == "messages.0: bad; messages.1: bad; messages.2: bad; and 6 more"
