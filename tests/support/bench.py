"""Measurements made up for tests of what is computed from them."""

from __future__ import annotations

from specvlm_sglang.report.phases import PHASES
from specvlm_sglang.tools.bench.measure import Record
from specvlm_sglang.tools.client import Answer


def answer(
    ids: tuple[int, ...] = (7, 8, 9, 10, 11),
    *,
    first: float = 1.0,
    seconds: float = 3.0,
    rounds: int = 4,
    cold: str | None = None,
) -> Answer:
    """An answer of which everything but the first token came after ``first`` seconds."""
    return Answer(
        ids=ids,
        text="said",
        first_token_seconds=first,
        seconds=seconds,
        decode_tokens=len(ids) - 1,
        rounds=rounds,
        prompt_tokens=100,
        cached_tokens=0,
        cold=cold,
    )


def record(
    configuration: str,
    *answers: Answer,
    workload: str = "2k",
    batch: int = 0,
    index: int = 0,
    seconds: float | None = None,
    phases: dict[str, float] | None = None,
) -> Record:
    """A record of one question per answer; ``phases`` in seconds, of one call each."""
    taken = phases or {}
    return Record(
        workload=workload,
        configuration=configuration,
        batch=batch,
        round=index,
        seconds=max(a.seconds for a in answers) if seconds is None else seconds,
        answers={(f"clip-{place}", 0): given for place, given in enumerate(answers)},
        phases={p: {"seconds": taken.get(p, 0.0), "calls": 1} for p in PHASES} if taken else {},
    )
