"""The one exception of the tools."""

from __future__ import annotations


class ToolError(Exception):
    """Something that a user can mend; the message is one sentence that says what."""
