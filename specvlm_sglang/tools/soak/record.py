"""The figures of a soak."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from specvlm_sglang.tools.soak.health import Snapshot, leaks
from specvlm_sglang.tools.soak.load import ABORT_ALL, DUPLICATE, FLUSH, Job
from specvlm_sglang.tools.soak.sending import Outcome

SHOWN = 20
"""Failures that a record has in words."""


@dataclass
class Record:
    """Counts of one load, and what it left.

    Attributes
    ----------
    expected
        Texts of plain decoding by the question's name; one for each choice.
    requests, taken_off
        Sent; and of these cut or aborted.
    compared, mismatches, failed
        Greedy answers that were compared with plain decoding's, those that differed, and requests
        that failed: a 5xx, a broken connection, a hang, an abort that nobody asked for.
    failures
        The first of both in words.
    by_question, by_ending, by_outcome
        Requests by each.
    """

    expected: dict[str, tuple[str, ...]]
    requests: int = 0
    taken_off: int = 0
    compared: int = 0
    mismatches: int = 0
    failed: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    by_question: Counter[str] = field(default_factory=Counter)
    by_ending: Counter[str] = field(default_factory=Counter)
    by_outcome: Counter[str] = field(default_factory=Counter)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)

    def add(self, job: Job, outcome: Outcome) -> None:
        """Count one job."""
        self.by_ending[job.ending] += 1
        self.by_outcome[outcome.kind] += 1
        if outcome.kind == "failed":
            self.failed += 1
            self._tell(job, outcome.said)
        if job.ending in (FLUSH, ABORT_ALL):
            return
        self.requests += 2 if job.ending == DUPLICATE else 1
        self.by_question[job.question.name] += 1
        self.taken_off += outcome.kind in ("cut", "aborted")
        if outcome.texts and job.question.is_greedy:
            self._compare(job, outcome.texts)

    def _compare(self, job: Job, texts: tuple[str, ...]) -> None:
        self.compared += 1
        wanted = self.expected[job.question.name]
        if texts != wanted:
            self.mismatches += 1
            self._tell(job, f"answered {texts!r}, plain decoding {wanted!r}")

    def _tell(self, job: Job, said: str) -> None:
        if len(self.failures) < SHOWN:
            self.failures.append(f"{job.question.name}, {job.ending}, {job.specvlm}: {said}")

    @property
    def leaks(self) -> list[str]:
        """See `specvlm_sglang.tools.soak.health.leaks`."""
        return leaks(*(self.snapshots[name] for name in ("before", "warm", "after")))

    @property
    def is_good(self) -> bool:
        """Whether nothing differed, failed or leaked."""
        return not (self.mismatches or self.failed or self.leaks)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return {
            "requests": self.requests,
            "taken_off": self.taken_off,
            "compared": self.compared,
            "mismatches": self.mismatches,
            "failed": self.failed,
            "leaks": self.leaks,
            "seconds": round(self.seconds, 1),
            "failures": self.failures,
            "by_question": dict(self.by_question.most_common()),
            "by_ending": dict(self.by_ending.most_common()),
            "by_outcome": dict(self.by_outcome.most_common()),
            "counters": self.counters,
            "snapshots": {name: one.as_dict() for name, one in self.snapshots.items()},
        }
