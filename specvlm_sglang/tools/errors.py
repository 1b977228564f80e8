"""The one exception of the tools."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus


class ToolError(Exception):
    """Something that a user can mend; the message is one sentence that says what."""


@contextmanager
def told_as_tool_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Raise a library's errors of these kinds as `ToolError`, with their own message.

    A server that wants another key, or one at all, is told by how a user gives it.
    """
    try:
        yield
    except kinds as error:
        raise ToolError(_refused_key(error) or str(error)) from error


def _refused_key(error: Exception) -> str | None:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return None
    return f"the server answers {status}: give its key with --api-key or in OPENAI_API_KEY"
