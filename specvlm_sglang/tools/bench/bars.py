"""What SPECVLM is expected to reach on the main workload, and whether it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from specvlm_sglang.tools.bench.configurations import MAIN, PLAIN, TREE, UNPRUNED, configuration
from specvlm_sglang.tools.bench.measure import Record
from specvlm_sglang.tools.bench.summary import (
    METRICS,
    Row,
    Spread,
    counterpart,
    phase_seconds,
    ratio,
)
from specvlm_sglang.tools.bench.workloads import LONG_ANSWER, MAIN_WORKLOAD

TOGETHER = f"{MAIN_WORKLOAD}-x8"


@dataclass(frozen=True)
class Bar:
    """One expectation.

    Attributes
    ----------
    name
        What is compared.
    bound
        The expectation.
    at_least
        Whether the value must be at least, or at most, the bound.
    value
        What was measured; None where this run did not measure it.
    """

    name: str
    bound: float
    at_least: bool
    value: float | None

    @property
    def met(self) -> bool | None:
        """None where nothing was measured."""
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def bars(
    rows: Sequence[Row],
    records: Sequence[Record],
    slots: Mapping[tuple[str, str], int],
    name: str = MAIN,
) -> list[Bar]:
    """The bars with what this run measured of one configuration.

    Parameters
    ----------
    rows, records
        Of the run.
    slots
        Draft KV slots of one request, by workload and configuration.
    name
        The configuration; the bounds are meant for 10 % retention.
    """
    base = f"{UNPRUNED}-tree" if configuration(name).server == TREE else UNPRUNED
    found = {(row.workload, row.configuration): row for row in rows}
    main = found.get((MAIN_WORKLOAD, name))
    together = found.get((TOGETHER, name))
    mine = [r for r in records if (r.workload, r.configuration) == (MAIN_WORKLOAD, name)]

    def to_plain(row: Row | None, which: str) -> float | None:
        return None if row is None else _median(row.ratios[which])

    def to_unpruned(read: Callable[[Record], float | None]) -> float | None:
        pairs = [(record, counterpart(record, records, base)) for record in mine]
        return _median(Spread.of(ratio(r, full, read) for r, full in pairs if full is not None))

    kept, full = (slots.get((MAIN_WORKLOAD, user)) for user in (name, base))
    shortest = [
        len(answer.ids)
        for record in records
        if (record.workload, record.configuration) == (MAIN_WORKLOAD, PLAIN)
        for answer in record.answers.values()
    ]
    return [
        Bar("decode speedup over plain", 2.7, True, to_plain(main, "decode_speedup")),
        Bar("end-to-end speedup over plain", 1.5, True, to_plain(main, "latency_speedup")),
        Bar("time to first token over plain's", 1.15, False, to_plain(main, "first_token_ratio")),
        Bar(
            "draft prefill over the unpruned draft's",
            *(0.2, False, to_unpruned(phase_seconds("draft_prefill"))),
        ),
        Bar(
            "draft KV over the unpruned draft's",
            *(0.15, False, kept / full if kept and full else None),
        ),
        Bar(
            "accept length over the unpruned draft's",
            *(0.9, True, to_unpruned(METRICS["accept_length"])),
        ),
        Bar(
            "scoring and selection over target prefill",
            *(0.01, False, _median(Spread.of(map(_pruning_share, mine)))),
        ),
        Bar("throughput of 8 over plain's", 1.0, True, to_plain(together, "throughput_speedup")),
        Bar("tokens of the shortest plain answer", LONG_ANSWER, True, min(shortest, default=None)),
    ]


def _pruning_share(record: Record) -> float | None:
    prefill, *pruning = (
        record.phases.get(phase, {}).get("seconds")
        for phase in ("target_prefill", "scoring", "selection")
    )
    return sum(seconds or 0 for seconds in pruning) / prefill if prefill else None


def _median(spread: Spread | None) -> float | None:
    return None if spread is None else spread.median
