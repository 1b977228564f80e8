"""What waits to be replayed, what was found, and when a replay gives way."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sglang.srt.runtime_context import get_parallel

from specvlm_sglang.host.plain_decoding import CannotDecodeError, is_replay
from specvlm_sglang.lossless.audit.recorded import (
    WEIGHTS_CHANGED,
    Recorded,
    is_selected,
    mark_weights_changed,
    why_not,
)
from specvlm_sglang.lossless.audit.replay import Mismatch, Replay
from specvlm_sglang.report.observer import Observer

logger = logging.getLogger(__name__)

MAX_WAITING = 8
"""Requests recorded and not yet compared, the one that is being replayed among them."""
MAX_PIXEL_BYTES = 1 << 30
"""And the pixels of their images and videos, unless it is one request alone."""
MAX_INTERRUPTIONS = 3
"""A replay that gave way so often is not begun again."""
MISMATCHES_KEPT = 16

QUEUE_FULL = "queue full"
INTERRUPTED = "interrupted too often"
FAILED = "failed"


class Auditor:
    """Replays a share of the finished requests while the scheduler has nothing else to do.

    Lives in SGLang's scheduler, one on each tensor-parallel rank. All decide alike: by request
    ids, by the order in which requests finish and arrive, and by what the allocators hold, never by
    a clock.

    Parameters
    ----------
    share
        Share of the requests, in (0, 1].
    observer
        Told of every comparison.
    start
        ``start(scheduler, recorded)`` begins a replay.
    """

    def __init__(
        self,
        share: float,
        observer: Observer,
        start: Callable[[Any, Recorded], Any] = Replay.start,
    ) -> None:
        self.share = share
        self._observer = observer
        self._start = start
        self._waiting: deque[Recorded] = deque()
        self._running: tuple[Recorded, Replay] | None = None
        self._selected = 0
        self._interruptions = 0
        self._skipped: Counter[str] = Counter()
        self._mismatches: deque[Mismatch] = deque(maxlen=MISMATCHES_KEPT)

    @property
    def is_running(self) -> bool:
        """Whether a replay holds a part of the KV cache."""
        return self._running is not None

    @property
    def has_work(self) -> bool:
        """Whether an idle scheduler has something to replay."""
        return self.is_running or bool(self._waiting)

    def note_finished(self, req: Any) -> None:
        """Record ``req``, which has just finished, if it belongs to the share."""
        if is_replay(req) or not is_selected(req.rid, self.share):
            return
        self._selected += 1
        reason = why_not(req)
        if reason is not None:
            self._skipped[reason] += 1
            return
        recorded = Recorded.of(req)
        if self._is_full(recorded):
            self._skipped[QUEUE_FULL] += 1
            return
        self._waiting.append(recorded)

    def _is_full(self, newest: Recorded) -> bool:
        held = [*self._waiting, *([self._running[0]] if self._running is not None else [])]
        pixels = newest.pixel_bytes + sum(recorded.pixel_bytes for recorded in held)
        return len(held) >= MAX_WAITING or (bool(held) and pixels > MAX_PIXEL_BYTES)

    def step(self, scheduler: Any) -> None:
        """Run one forward pass of a replay; the scheduler has nothing else to do."""
        with self._failures_skipped():
            if self._running is None:
                recorded = self._waiting.popleft()
                self._running = recorded, self._start(scheduler, recorded)
            verdict = self._running[1].step()
            if verdict is not None:
                self._settle(verdict.mismatch)

    @contextmanager
    def _failures_skipped(self) -> Iterator[None]:
        """A replay that cannot go on is given up; nobody else notices."""
        try:
            yield
        except CannotDecodeError as error:
            self._skip(str(error))
        except Exception as error:
            if get_parallel().tp_size > 1:
                # The other ranks wait for this one inside the pass: nothing can be taken back.
                raise
            logger.warning("SPECVLM: a replay failed: %s", error, exc_info=True)
            self._skip(FAILED)

    def _skip(self, reason: str) -> None:
        if self._running is not None:
            self._end()
        self._skipped[reason] += 1

    def _settle(self, mismatch: Mismatch | None) -> None:
        self._end()
        self._observer.audited(mismatch is not None)
        if mismatch is not None:
            self._mismatches.append(mismatch)
            logger.warning("SPECVLM: an answer is not what plain decoding says: %s", mismatch)

    def _end(self) -> Recorded:
        """Release the replay that is under way; returns what it replayed."""
        assert self._running is not None
        recorded, replay = self._running
        self._running = None
        replay.release()
        return recorded

    def give_way(self) -> None:
        """Take the replay that is under way back at once, to begin it again later."""
        if self._running is None:
            return
        recorded = self._end()
        self._interruptions += 1
        recorded.interruptions += 1
        if recorded.interruptions > MAX_INTERRUPTIONS:
            self._skipped[INTERRUPTED] += 1
        else:
            self._waiting.append(recorded)

    def note_weights_changed(self, live: Iterable[Any]) -> None:
        """Drop what the weights so far have answered.

        Parameters
        ----------
        live
            Requests that have begun and not finished.
        """
        if self._running is not None:
            self._skip(WEIGHTS_CHANGED)
        self._skipped[WEIGHTS_CHANGED] += len(self._waiting)
        self._waiting.clear()
        for req in live:
            mark_weights_changed(req)

    def state(self) -> dict[str, Any]:
        """What ``/server_info`` shows of the audit, this rank's."""
        totals = self._observer.totals
        return {
            "share": self.share,
            "selected": self._selected,
            "audited": totals.audited,
            "mismatches": totals.audit_mismatches,
            "skipped": {reason: count for reason, count in self._skipped.items() if count},
            "interruptions": self._interruptions,
            "waiting": len(self._waiting),
            "replaying": None if self._running is None else self._running[0].id,
            "last_mismatches": [mismatch.as_dict() for mismatch in self._mismatches],
        }
