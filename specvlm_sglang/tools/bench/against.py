"""``--against``: whether this run lost speed beyond noise beside an earlier one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specvlm_sglang.tools.bench.configurations import PLAIN
from specvlm_sglang.tools.bench.intervals import Interval
from specvlm_sglang.tools.bench.measure import Record
from specvlm_sglang.tools.bench.stored import unpack
from specvlm_sglang.tools.bench.summary import METRICS, SPEEDUPS, counterpart, ratio, summarise
from specvlm_sglang.tools.errors import ToolError

LEVEL = 0.99
"""Of the intervals: a run has many, and each could cry wolf."""
LEAST_PAIRS = 3
SMALLEST_LOSS = 0.02
"""Losses below this are not worth a failure, however certain."""
EVERYTHING = "all workloads"
_JUDGED = ("decode_speedup", "latency_speedup", "throughput_speedup", "accept_length")


@dataclass(frozen=True)
class Change:
    """One number now over the same number then, over rounds with the same questions.

    A speedup is the round's ratio to plain decoding, so that a machine that is slower today cancels
    out; the accept length is a count. Of plain decoding it is the rate itself, which is shown and
    not judged: it is the machine's and SGLang's.
    """

    workload: str
    configuration: str
    name: str
    interval: Interval

    @property
    def judged(self) -> bool:
        """Whether it can be a loss: enough pairs, and not plain decoding's."""
        return self.configuration != PLAIN and self.interval.count >= LEAST_PAIRS

    @property
    def lost(self) -> bool:
        """Whether the whole interval lies below 1, and its middle by more than `SMALLEST_LOSS`."""
        high = self.interval.high
        return (
            self.judged
            and high is not None
            and high < 1
            and self.interval.ratio < 1 - SMALLEST_LOSS
        )


@dataclass(frozen=True)
class Earlier:
    """An earlier run.

    Attributes
    ----------
    folder
        Of its ``results.json``.
    settings
        What it measured; of a record without them, its pair alone.
    unequal
        Workload, configuration, task and question of answers that differed from plain decoding's.
    """

    folder: Path
    settings: dict[str, Any]
    records: Sequence[Record]
    unequal: frozenset[tuple[str, str, str, int]]


@dataclass(frozen=True)
class Comparison:
    """This run beside an earlier one."""

    folder: Path
    changes: Sequence[Change]
    broken: Sequence[tuple[str, str, str, int]] = field(default=())
    """Answers that equalled plain decoding's then and differ now, as `Earlier.unequal`."""

    @property
    def lost(self) -> bool:
        """Whether anything was lost."""
        return bool(self.broken) or any(change.lost for change in self.changes)


def read(folder: Path) -> Earlier:
    """The run that was written to ``folder``.

    Raises
    ------
    ToolError
        There is none.
    """
    path = folder / "results.json"
    try:
        data = json.loads(path.read_text())
        unequal = frozenset(
            (row["workload"], m["configuration"], m["task"], m["question"])
            for row in data["summary"]
            for m in row["mismatches"]
        )
        records = [unpack(record) for record in data["records"]]
        settings = data.get("settings", {"pair": data["pair"]})
    except OSError as error:
        raise ToolError(f"--against {folder}: {path} cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ToolError(f"--against {folder}: {path} is no record of a run ({error!r})") from None
    return Earlier(folder, settings, records, unequal)


def check_settings(earlier: Earlier, settings: dict[str, Any]) -> None:
    """Refuse an earlier run of another pair, dtype or shape.

    Raises
    ------
    ToolError
        Naming the first setting that differs.
    """
    now = json.loads(json.dumps(settings))
    for name in earlier.settings.keys() & now.keys() - {"workloads", "configurations"}:
        if earlier.settings[name] != now[name]:
            raise ToolError(
                f"--against {earlier.folder}: measured with {name} {earlier.settings[name]}, "
                f"this run with {now[name]}"
            )


def compare(records: Sequence[Record], earlier: Earlier) -> Comparison:
    """This run's records beside an earlier run's.

    Raises
    ------
    ToolError
        They have no question in common.
    """
    pairs = [
        (record, then) for record in records if (then := _same(record, earlier.records)) is not None
    ]
    if not pairs:
        raise ToolError(
            f"--against {earlier.folder}: no question in common; use the same --workloads and "
            "--rounds"
        )
    groups: dict[tuple[str, str], list[tuple[Record, Record]]] = {}
    for now, then in pairs:
        groups.setdefault((now.workload, now.configuration), []).append((now, then))
        groups.setdefault((EVERYTHING, now.configuration), []).append((now, then))
    several = len({now.workload for now, _ in pairs}) > 1
    changes = [
        Change(workload, configuration, name, found)
        for (workload, configuration), group in groups.items()
        if several or workload != EVERYTHING
        for name in (_JUDGED if configuration != PLAIN else ("decode_tokens_per_second",))
        if (found := _interval(name, group, records, earlier.records)) is not None
    ]
    changes.sort(key=lambda change: change.workload == EVERYTHING)
    return Comparison(earlier.folder, changes, _broken(records, earlier))


def _same(record: Record, others: Sequence[Record]) -> Record | None:
    """The record of the same configuration about the same questions."""
    for other in others:
        same = (other.workload, other.configuration, other.round, other.batch)
        if same == (record.workload, record.configuration, record.round, record.batch):
            return other if other.answers.keys() == record.answers.keys() else None
    return None


def _interval(
    name: str,
    group: Sequence[tuple[Record, Record]],
    records: Sequence[Record],
    earlier: Sequence[Record],
) -> Interval | None:
    def quotient(now: Record, then: Record) -> float | None:
        above, below = _value(name, now, records), _value(name, then, earlier)
        return above / below if above and below else None

    return Interval.of((quotient(now, then) for now, then in group), LEVEL)


def _value(name: str, record: Record, records: Sequence[Record]) -> float | None:
    if name not in SPEEDUPS:
        return METRICS[name](record)
    plain = counterpart(record, records)
    metric, inverted = SPEEDUPS[name]
    return None if plain is None else ratio(record, plain, METRICS[metric], inverted=inverted)


def _broken(records: Sequence[Record], earlier: Earlier) -> list[tuple[str, str, str, int]]:
    asked = {
        (r.workload, r.configuration, task, question)
        for r in earlier.records
        for task, question in r.answers
    }
    now = {
        (row.workload, m.configuration, m.task, m.question)
        for row in summarise(records)
        for m in row.mismatches
    }
    return sorted((now & asked) - earlier.unequal)


def lines(comparison: Comparison) -> list[list[str]]:
    """Per change its workload, configuration, name, ratio with interval, and the verdict."""

    def verdict(change: Change) -> str:
        if change.lost:
            return "LOST"
        return "" if change.judged else "not judged"

    return [
        [c.workload, c.configuration, c.name.replace("_", " "), str(c.interval), verdict(c)]
        for c in comparison.changes
    ]
