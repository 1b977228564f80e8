"""Medians and spreads of what was measured, ratios within one run, and whether answers agree."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from specvlm_sglang.report.phases import PHASES
from specvlm_sglang.tools.bench.configurations import PLAIN
from specvlm_sglang.tools.bench.intervals import Interval
from specvlm_sglang.tools.bench.measure import Record
from specvlm_sglang.tools.client import Answer


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of ``count`` values."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Of the values that are not None; None where there are none."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.median(known), min(known), max(known), len(known))


def _median_of(read: Callable[[Answer], float | None]) -> Callable[[Record], float | None]:
    def of(record: Record) -> float | None:
        known = [v for v in map(read, record.answers.values()) if v is not None]
        return statistics.median(known) if known else None

    return of


def accept_length(record: Record) -> float | None:
    """Tokens emitted per verify round, bonus included; 1 for plain decoding."""
    rounds = sum(answer.rounds for answer in record.answers.values())
    tokens = sum(len(answer.ids) - 1 for answer in record.answers.values())
    return tokens / rounds if rounds else None


def tokens_per_second(record: Record) -> float | None:
    """Of all answers together, prefill included."""
    return sum(len(answer.ids) for answer in record.answers.values()) / record.seconds


def phase_seconds(phase: str) -> Callable[[Record], float | None]:
    """Seconds of ``phase`` per answer; None for plain decoding."""

    def of(record: Record) -> float | None:
        found = record.phases.get(phase)
        return None if found is None else found["seconds"] / len(record.answers)

    return of


METRICS: dict[str, Callable[[Record], float | None]] = {
    "first_token_seconds": _median_of(lambda answer: answer.first_token_seconds),
    "decode_tokens_per_second": _median_of(lambda answer: answer.decode_rate),
    "seconds": _median_of(lambda answer: answer.seconds),
    "tokens_per_second": tokens_per_second,
    "accept_length": accept_length,
    "rounds": _median_of(lambda answer: answer.rounds),
    "tokens": _median_of(lambda answer: len(answer.ids)),
    "kept_video_tokens": _median_of(lambda answer: answer.kept_video_tokens),
    **{f"phase.{phase}": phase_seconds(phase) for phase in PHASES},
}
"""What a table can show of one record; where it has several answers, their median."""

SPEEDUPS = {
    "decode_speedup": ("decode_tokens_per_second", False),
    "latency_speedup": ("seconds", True),
    "first_token_ratio": ("first_token_seconds", False),
    "throughput_speedup": ("tokens_per_second", False),
}
"""Ratios to plain decoding by their metric; True: smaller is better, so the ratio is inverted."""


@dataclass(frozen=True)
class Mismatch:
    """An answer that differs from plain decoding's, from token ``position`` on."""

    configuration: str
    task: str
    question: int
    position: int


@dataclass(frozen=True)
class Row:
    """One configuration in one workload.

    Attributes
    ----------
    metrics
        By name of `METRICS`, over the rounds.
    ratios
        By name of `SPEEDUPS`, of each round to plain decoding's same round.
    intervals
        The same ratios' geometric means with their intervals.
    equal, compared
        Answers that equal plain decoding's token for token, of so many.
    cold
        Answers that had no draft.
    """

    workload: str
    configuration: str
    metrics: dict[str, Spread | None]
    ratios: dict[str, Spread | None]
    equal: int
    compared: int
    cold: int
    mismatches: tuple[Mismatch, ...]
    intervals: dict[str, Interval | None] = field(default_factory=dict)


def summarise(records: Sequence[Record]) -> list[Row]:
    """One row per workload and configuration, in the order of their first record."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.workload, record.configuration), []).append(record)
    order = list(dict.fromkeys(record.workload for record in records))
    rows = [_row(group, records) for group in groups.values()]
    return sorted(rows, key=lambda row: (order.index(row.workload), row.configuration != PLAIN))


def _row(group: Sequence[Record], records: Sequence[Record]) -> Row:
    pairs = [(record, counterpart(record, records)) for record in group]
    found = [
        mismatch
        for record, plain in pairs
        if plain is not None
        for mismatch in mismatches(record, plain)
    ]
    compared = sum(len(record.answers) for record, plain in pairs if plain is not None)
    ratios = {
        name: [
            ratio(record, plain, METRICS[metric], inverted=inverted)
            for record, plain in pairs
            if plain is not None
        ]
        for name, (metric, inverted) in SPEEDUPS.items()
    }
    return Row(
        workload=group[0].workload,
        configuration=group[0].configuration,
        metrics={name: Spread.of(map(read, group)) for name, read in METRICS.items()},
        ratios={name: Spread.of(values) for name, values in ratios.items()},
        intervals={name: Interval.of(values) for name, values in ratios.items()},
        equal=compared - len(found),
        compared=compared,
        cold=sum(answer.cold is not None for r in group for answer in r.answers.values()),
        mismatches=tuple(found),
    )


def counterpart(
    record: Record, records: Sequence[Record], configuration: str = PLAIN
) -> Record | None:
    """The record of another configuration about the same questions; best of the same batch."""
    same = [
        other
        for other in records
        if (other.configuration, other.workload, other.round)
        == (configuration, record.workload, record.round)
    ]
    return next((other for other in same if other.batch == record.batch), same[0] if same else None)


def ratio(
    record: Record,
    base: Record,
    read: Callable[[Record], float | None],
    *,
    inverted: bool = False,
) -> float | None:
    """What ``read`` finds in a record over what it finds in another one."""
    above, below = read(record), read(base)
    if inverted:
        above, below = below, above
    return above / below if above is not None and below else None


def mismatches(record: Record, plain: Record) -> list[Mismatch]:
    """Answers that differ from plain decoding's, with the first position that does."""
    found = []
    for (task, question), answer in record.answers.items():
        other = plain.answers[task, question]
        if answer.ids != other.ids:
            equal = [a == b for a, b in zip(answer.ids, other.ids, strict=False)]
            position = equal.index(False) if False in equal else len(equal)
            found.append(Mismatch(record.configuration, task, question, position))
    return found
