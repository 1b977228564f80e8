"""Where the time of a SPECVLM server goes, phase by phase."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

SYNC_VARIABLE = "SPECVLM_SYNC_PHASES"
"""``1`` waits for the GPU at each phase's ends: true times, slower serving; for benchmarks."""

PHASES = (
    "target_prefill",
    "scoring",
    "selection",
    "draft_vision",
    "draft_prefill",
    "draft",
    "verify",
    "draft_extend",
)
"""In the order of a request's life; none contains another."""


class PhaseClock:
    """Wall seconds and calls of each phase since the server started.

    On a GPU without ``SPECVLM_SYNC_PHASES=1`` the seconds are those of the launches.

    Parameters
    ----------
    device
        Device of the models, for example ``"cpu"`` or ``"cuda"``.
    heard_by
        Called at the end of each phase with its name, when it began and ended, and the seconds
        between that were its own; what was counted aside comes once, from its first to its last.
    """

    def __init__(
        self, device: str, heard_by: Callable[[str, float, float, float], None] | None = None
    ) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.calls = dict.fromkeys(PHASES, 0)
        self._aside = 0.0
        self._heard_by = heard_by
        self._set_aside: dict[str, tuple[float, float, float]] = {}
        self._sync = device != "cpu" and os.environ.get(SYNC_VARIABLE, "0") == "1"

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the enclosed work as one call of ``phase``, one of `PHASES`."""
        aside, started = self._aside, self._now()
        try:
            yield
        finally:
            ended = self._now()
            own = ended - started - (self._aside - aside)
            self.seconds[phase] += own
            self.calls[phase] += 1
            if self._heard_by is not None:
                for other, times in self._set_aside.items():
                    self._heard_by(other, *times)
                self._set_aside.clear()
                self._heard_by(phase, started, ended, own)

    @contextmanager
    def aside(self, phase: str) -> Iterator[None]:
        """Count the enclosed time to ``phase`` instead of the phase around it; no call of it."""
        started = self._now()
        try:
            yield
        finally:
            ended = self._now()
            elapsed = ended - started
            self.seconds[phase] += elapsed
            self._aside += elapsed
            if self._heard_by is not None:
                first, _, before = self._set_aside.get(phase, (started, ended, 0.0))
                self._set_aside[phase] = (first, ended, before + elapsed)

    def _now(self) -> float:
        if self._sync:
            torch.cuda.synchronize()
        return time.perf_counter()

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Return ``{phase: {"seconds": ..., "calls": ...}}``."""
        return {
            phase: {"seconds": self.seconds[phase], "calls": self.calls[phase]} for phase in PHASES
        }
