"""The one exception of the tools."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ToolError(Exception):
    """Something that a user can mend; the message is one sentence that says what."""


@contextmanager
def told_as_tool_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Raise a library's errors of these kinds as `ToolError` with their own message."""
    try:
        yield
    except kinds as error:
        raise ToolError(str(error)) from error
