"""A run for machines (JSON) and for people (tables, in a terminal and in Markdown)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from specvlm_sglang.tools.bench import against
from specvlm_sglang.tools.bench.against import Comparison
from specvlm_sglang.tools.bench.bars import Bar
from specvlm_sglang.tools.bench.configurations import PLAIN
from specvlm_sglang.tools.bench.measure import Record
from specvlm_sglang.tools.bench.stored import pack
from specvlm_sglang.tools.bench.summary import SPEEDUPS, Row, Spread

PHASE_NAMES = {
    "target_prefill": "target prefill",
    "scoring": "scoring",
    "selection": "selection",
    "draft_vision": "draft vision",
    "draft_prefill": "draft prefill",
    "draft": "drafting",
    "verify": "verify",
    "draft_extend": "draft extend",
}


@dataclass(frozen=True)
class Report:
    """Everything of one run.

    Attributes
    ----------
    about
        Versions, hardware, commit, command, models, workloads: JSON-ready.
    servers
        Per server its launch arguments and memory: JSON-ready.
    bars
        By configuration.
    slots
        Draft KV slots of one request, by workload and configuration.
    slot_bytes
        Bytes of one slot.
    comparison
        With an earlier run; None without ``--against``.
    """

    about: dict[str, Any]
    servers: dict[str, dict[str, Any]]
    records: Sequence[Record]
    rows: Sequence[Row]
    bars: dict[str, Sequence[Bar]]
    slots: dict[tuple[str, str], int]
    slot_bytes: int
    comparison: Comparison | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return {
            **self.about,
            "servers": self.servers,
            "bars": {
                name: [{**asdict(bar), "met": bar.met} for bar in bars]
                for name, bars in self.bars.items()
            },
            "summary": [asdict(row) for row in self.rows],
            "draft_kv": [
                {
                    "workload": workload,
                    "configuration": configuration,
                    "slots": slots,
                    "bytes": slots * self.slot_bytes,
                }
                for (workload, configuration), slots in self.slots.items()
            ],
            **({} if self.comparison is None else {"against": _comparison(self.comparison)}),
            "records": [_record(record) for record in self.records],
        }

    def draft_kv(self, row: Row) -> str:
        """Draft KV of one request in KiB; "" where it was not asked for."""
        slots = self.slots.get((row.workload, row.configuration))
        return "" if slots is None else f"{slots * self.slot_bytes / 1024:,.0f} KiB"


def write(report: Report, folder: Path) -> None:
    """Write ``results.json`` and ``results.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    rounded = _rounded(report.as_dict())
    (folder / "results.json").write_text(json.dumps(rounded, indent=1) + "\n")
    (folder / "results.md").write_text(markdown(report))


def show(report: Report, console: Console) -> None:
    """Print the tables, with as many columns as a terminal has room for."""
    for title, header, lines in tables(report, _NARROW):
        table = Table(*header, title=title, title_justify="left", box=None)
        for place, column in enumerate(table.columns):
            column.justify = "right" if place else "left"
            column.overflow = "fold"
        for line in lines:
            table.add_row(*line)
        console.print(table, "")


def markdown(report: Report) -> str:
    """The same tables, with what the run was."""
    about = report.about
    parts = [
        "# Measured by `specvlm bench`",
        f"`{about['command']}`",
        "\n".join(f"- {line}" for line in about["notes"]),
    ]
    for title, header, lines in tables(report, tuple(_COLUMNS)):
        rule = ["---"] + ["---:"] * (len(header) - 1)
        rows = [header, rule, *lines]
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        parts += [f"## {title}", table]
    return "\n\n".join(parts) + "\n"


Lines = list[list[str]]


def tables(report: Report, columns: Sequence[str]) -> list[tuple[str, list[str], Lines]]:
    """Title, header and lines of every table."""
    found = []
    for name, bars in report.bars.items():
        header = [f"expected of {name}", "bound", "measured", ""]
        found.append((f"Bars, {name}", header, [_bar_line(bar) for bar in bars]))
    for workload in dict.fromkeys(row.workload for row in report.rows):
        rows = [row for row in report.rows if row.workload == workload]
        title = f"{workload}: {report.about['workloads'][workload]['about']}"
        found.append((title, list(columns), [_line(row, report, columns) for row in rows]))
    ratios = [line for row in report.rows if (line := _interval_line(row))]
    if ratios:
        header = ["paired ratios to plain", *(name.replace("_", " ") for name in SPEEDUPS)]
        found.append(("Geometric means over the rounds, with 95 % intervals", header, ratios))
    header = ["milliseconds per answer", *PHASE_NAMES.values()]
    phases = [_phase_line(row) for row in report.rows if row.metrics["phase.verify"]]
    if phases:
        found.append(("Where the time goes", header, phases))
    lines = [
        [
            name,
            f"{server['peak_resident_bytes'] / 2**30:.2f} GiB",
            "" if server["gpu_bytes"] is None else f"{server['gpu_bytes'] / 2**30:.2f} GiB",
        ]
        for name, server in report.servers.items()
    ]
    found.append(("Memory", ["server", "peak resident, all processes", "GPU"], lines))
    if report.comparison is not None:
        header = ["now over then", "configuration", "what", "ratio, 99 % interval", ""]
        title = f"Beside {report.comparison.folder}"
        found.append((title, header, against.lines(report.comparison)))
        broken = [list(map(str, answer)) for answer in report.comparison.broken]
        if broken:
            header = ["workload", "configuration", "clip", "question"]
            found.append(("LOST: answers no longer equal to plain decoding's", header, broken))
    return found


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "configuration": lambda row: row.configuration,
    "first token (s)": lambda row: _spread(row.metrics["first_token_seconds"]),
    "decode (tokens/s)": lambda row: _spread(row.metrics["decode_tokens_per_second"]),
    "latency (s)": lambda row: _spread(row.metrics["seconds"]),
    "all together (tokens/s)": lambda row: _spread(row.metrics["tokens_per_second"]),
    "accept length": lambda row: _spread(row.metrics["accept_length"]),
    "rounds": lambda row: _spread(row.metrics["rounds"], digits=0),
    "tokens": lambda row: _spread(row.metrics["tokens"], digits=0),
    "decode speedup": lambda row: _spread(row.ratios["decode_speedup"], unit="x"),
    "latency speedup": lambda row: _spread(row.ratios["latency_speedup"], unit="x"),
    "throughput speedup": lambda row: _spread(row.ratios["throughput_speedup"], unit="x"),
    "draft KV": lambda row: "",
    "equal answers": lambda row: f"{row.equal}/{row.compared}{_first_difference(row)}",
    "cold": lambda row: str(row.cold),
}


_NARROW = ("configuration", "accept length", "decode speedup", "latency speedup", "equal answers")


def _line(row: Row, report: Report, columns: Sequence[str]) -> list[str]:
    return [report.draft_kv(row) if name == "draft KV" else _COLUMNS[name](row) for name in columns]


def _interval_line(row: Row) -> list[str]:
    """Empty where the configuration is plain decoding or every ratio is of a single round."""
    found = [row.intervals.get(name) for name in SPEEDUPS]
    if row.configuration == PLAIN or all(i is None or i.low is None for i in found):
        return []
    return [f"{row.workload}, {row.configuration}", *("" if i is None else str(i) for i in found)]


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "folder": str(comparison.folder),
        "changes": [{**asdict(c), "lost": c.lost} for c in comparison.changes],
        "broken": comparison.broken,
    }


def _first_difference(row: Row) -> str:
    if not row.mismatches:
        return ""
    return f" (first from token {min(m.position for m in row.mismatches)})"


def _phase_line(row: Row) -> list[str]:
    values = [row.metrics[f"phase.{phase}"] for phase in PHASE_NAMES]
    return [
        f"{row.workload}, {row.configuration}",
        *("" if value is None else f"{1e3 * value.median:,.1f}" for value in values),
    ]


def _bar_line(bar: Bar) -> list[str]:
    verdict = {True: "met", False: "MISSED", None: "not measured"}[bar.met]
    return [
        bar.name,
        f"{'at least' if bar.at_least else 'at most'} {bar.bound:g}",
        "" if bar.value is None else f"{bar.value:.4g}",
        verdict,
    ]


def _spread(spread: Spread | None, *, digits: int = 2, unit: str = "") -> str:
    if spread is None:
        return ""
    median = f"{spread.median:.{digits}f}{unit}"
    if spread.count == 1:
        return median
    return f"{median} ({spread.low:.{digits}f}-{spread.high:.{digits}f})"


def _record(record: Record) -> dict[str, Any]:
    packed = pack(record)
    for answer in packed["answers"]:
        # The text is long and follows from the models; its tokens' number is in `rounds` and rate.
        answer["tokens"] = len(answer.pop("ids"))
        del answer["text"]
    return packed


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value
