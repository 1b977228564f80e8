"""Errors of one request become its refusal, and nothing else does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from specvlm_sglang.host.unforeseen import _refusing


def collected(error: Exception | None, answers: int) -> tuple[list[int], Any, bool]:
    """What comes of a handler that answers so often and then fails; the request; if it ended."""
    request, ended = SimpleNamespace(rid={"a": []}), []

    async def handler(self: Any, obj: Any, request: Any = None) -> AsyncIterator[int]:
        try:
            for number in range(answers):
                yield number
            if error is not None:
                raise error
        finally:
            ended.append(True)

    async def run() -> list[int]:
        return [answer async for answer in _refusing(handler)(None, request)]

    try:
        return asyncio.run(run()), request, bool(ended)
    finally:
        assert ended


@pytest.mark.parametrize("error", [TypeError("unhashable"), AssertionError(), KeyError("rid")])
def test_what_fails_while_a_request_is_read_is_a_value_error_that_says_what(
    error: Exception,
) -> None:
    with pytest.raises(ValueError, match="cannot be read: ") as refused:
        collected(error, answers=0)
    assert type(error).__name__ in str(refused.value)
    assert refused.value.__cause__ is error


@pytest.mark.parametrize(
    ("error", "answers"),
    [(ValueError("text is missing"), 0), (RuntimeError("of the server"), 0), (TypeError("x"), 1)],
)
def test_other_errors_and_those_of_an_answer_stay_what_they_are(
    error: Exception, answers: int
) -> None:
    with pytest.raises(type(error)) as raised:
        collected(error, answers)
    assert raised.value is error


def test_answers_pass_and_the_request_is_left_alone() -> None:
    answers, request, ended = collected(None, answers=3)
    assert answers == [0, 1, 2]
    assert ended
    assert vars(request) == {"rid": {"a": []}}


def test_a_request_that_was_not_even_read_names_nothing_to_abort() -> None:
    request = SimpleNamespace(rid={"a": []})

    async def handler(self: Any, obj: Any, request: Any = None) -> AsyncIterator[int]:
        raise TypeError("unhashable")
        yield 0

    async def run() -> None:
        async for _ in _refusing(handler)(None, request):
            pass

    with pytest.raises(ValueError, match="unhashable"):
        asyncio.run(run())
    assert (request.is_single, request.rid) == (True, None)


def test_a_client_that_goes_closes_the_handler() -> None:
    closed = []

    async def handler(self: Any, obj: Any, request: Any = None) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    async def run() -> None:
        answers = _refusing(handler)(None, SimpleNamespace(is_single=True))
        assert await anext(answers) == 1
        await answers.aclose()
        assert closed == [True]

    asyncio.run(run())
