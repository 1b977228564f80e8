"""Our phases as spans inside SGLang's trace of a request (``--enable-trace``).

A request's times carry its trace, and take a slice of any name from whoever holds the request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from specvlm_sglang.host import contract

PREFIX = "specvlm_"
LEVEL = 3
"""Of SGLang's trace levels the most detailed one, and its default (``SGLANG_TRACE_LEVEL``)."""


class PhaseSpans:
    """Adds each phase to the traces of the requests that it is computed for.

    Made where tracing is on only; a request that is not traced takes no span.
    """

    def __init__(self) -> None:
        contract.require("phase spans")
        from sglang.srt.observability.req_time_stats import RequestStageConfig

        self._stage = RequestStageConfig
        self._reqs: Sequence[Any] = ()

    @contextmanager
    def of(self, reqs: Sequence[Any]) -> Iterator[None]:
        """Within, phases are those of these requests."""
        before, self._reqs = self._reqs, reqs
        try:
            yield
        finally:
            self._reqs = before

    def add(self, phase: str, started: float, ended: float, seconds: float) -> None:
        """Add a span.

        Parameters
        ----------
        phase
            Its name, without `PREFIX`.
        started, ended
            Of `time.perf_counter`.
        seconds
            How much of the time between was the phase's own.
        """
        stage = self._stage(PREFIX + phase, level=LEVEL)
        told = {"seconds": seconds, "requests": len(self._reqs)}
        for req in self._reqs:
            req.time_stats.trace_slice(stage, started, ended, told)
