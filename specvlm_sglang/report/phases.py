"""Where the time of a SPECVLM server goes, phase by phase."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
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
    """

    def __init__(self, device: str) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.calls = dict.fromkeys(PHASES, 0)
        self._aside = 0.0
        self._sync = device != "cpu" and os.environ.get(SYNC_VARIABLE, "0") == "1"

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the enclosed work as one call of ``phase``, one of `PHASES`."""
        aside, started = self._aside, self._now()
        try:
            yield
        finally:
            elapsed = self._now() - started
            self.seconds[phase] += elapsed - (self._aside - aside)
            self.calls[phase] += 1

    @contextmanager
    def aside(self, phase: str) -> Iterator[None]:
        """Count the enclosed time to ``phase`` instead of the phase around it; no call of it."""
        started = self._now()
        try:
            yield
        finally:
            elapsed = self._now() - started
            self.seconds[phase] += elapsed
            self._aside += elapsed

    def _now(self) -> float:
        if self._sync:
            torch.cuda.synchronize()
        return time.perf_counter()

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Return ``{phase: {"seconds": ..., "calls": ...}}``."""
        return {
            phase: {"seconds": self.seconds[phase], "calls": self.calls[phase]} for phase in PHASES
        }
