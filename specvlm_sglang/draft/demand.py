"""What a server is asked for: how many requests run together, and how long answers become."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

REMEMBERED = 32
"""Answers whose lengths are remembered."""
UNKNOWN = 128
"""Tokens of an answer without a limit, where nothing says how long answers become."""


class Demand:
    """Sees each round's requests; `lengths` and `together` say what to expect.

    It keeps none of them alive: a server that idles would hold the last ones' videos.
    """

    def __init__(self) -> None:
        self._running: list[weakref.ref[Any]] = []
        self._arrived = 0
        self._ended: deque[int | None] = deque(maxlen=REMEMBERED)

    def arrived(self) -> None:
        """A request came whose first round is yet to be."""
        self._arrived += 1

    def round(self, reqs: Sequence[Any]) -> None:
        """A round of SGLang's ``Req`` begins; those that ended since the last one are noted."""
        for req in self._there():
            if req.finished():
                # What its limit cut, or its client, might have become longer.
                ended = req.finished_reason.to_json().get("type") == "stop"
                self._ended.append(len(req.output_ids) if ended else None)
        self._running = [weakref.ref(req) for req in reqs]
        self._arrived = 0

    @property
    def together(self) -> int:
        """Requests of the round in which one that arrived last will be, at least 1."""
        running = sum(not req.finished() for req in self._there())
        return max(1, running + self._arrived)

    def _there(self) -> list[Any]:
        """Of the last round's requests, those that anybody still holds."""
        return [req for one in self._running if (req := one()) is not None]

    def lengths(self, filled: int, left: int | None) -> list[int]:
        """How many tokens an answer may get yet: as the last answers did, as far as it may.

        Parameters
        ----------
        filled
            Tokens that it has.
        left
            How many more its limit allows; None without a limit.
        """
        most = UNKNOWN if left is None else left
        found = [most if length is None else length - filled for length in self._ended]
        likely = [max(0, length) if left is None else min(max(0, length), left) for length in found]
        return likely or [most]
