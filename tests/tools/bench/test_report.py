"""Bars, tables, files and plots of a run."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from specvlm_sglang.tools.bench import plots
from specvlm_sglang.tools.bench.bars import Bar, bars
from specvlm_sglang.tools.bench.measure import Record
from specvlm_sglang.tools.bench.report import Report, show, write
from specvlm_sglang.tools.bench.summary import summarise
from specvlm_sglang.tools.errors import ToolError
from tests.support.bench import answer, record

LONG = tuple(range(130))


def run_records() -> list[Record]:
    """Plain decoding, the unpruned draft and SPECVLM, alone and eight together."""
    eight = [answer(LONG, seconds=20.0) for _ in range(8)]
    return [
        record("plain", answer(LONG, first=1.0, seconds=13.9, rounds=129)),
        record(
            "unpruned",
            answer(LONG, first=1.0, seconds=5.3, rounds=30),
            phases={"target_prefill": 1.0, "draft_prefill": 0.1},
        ),
        record(
            "specvlm-0.1",
            answer(LONG, first=1.1, seconds=5.4, rounds=32),
            phases={
                "target_prefill": 1.0,
                "draft_prefill": 0.03,
                "scoring": 0.004,
                "selection": 0.001,
            },
        ),
        record("plain", *eight, workload="2k-x8"),
        record("specvlm-0.1", *eight, workload="2k-x8", seconds=10.0),
    ]


def report() -> Report:
    records = run_records()
    rows = summarise(records)
    slots = {("2k", "unpruned"): 2200, ("2k", "specvlm-0.1"): 240}
    names = ("2k", "2k-x8", "512", "8k")
    about = {
        "command": "specvlm bench",
        "notes": ["a note"],
        "workloads": {name: {"about": f"about {name}"} for name in names},
    }
    server = {"peak_resident_bytes": 3 << 30, "gpu_bytes": None}
    return Report(
        about=about,
        servers={"plain": server},
        records=records,
        rows=rows,
        bars={"specvlm-0.1": bars(rows, records, slots)},
        slots=slots,
        slot_bytes=1024,
    )


def test_each_bar_compares_what_it_says() -> None:
    found = {bar.name: bar for bar in report().bars["specvlm-0.1"]}
    values = {name: bar.value for name, bar in found.items()}
    assert values == {
        "decode speedup over plain": pytest.approx(3.0),
        "end-to-end speedup over plain": pytest.approx(13.9 / 5.4),
        "time to first token over plain's": pytest.approx(1.1),
        "draft prefill over the unpruned draft's": pytest.approx(0.3),
        "draft KV over the unpruned draft's": pytest.approx(240 / 2200),
        "accept length over the unpruned draft's": pytest.approx(30 / 32),
        "scoring and selection over target prefill": pytest.approx(0.005),
        "throughput of 8 over plain's": pytest.approx(2.0),
        "tokens of the shortest plain answer": 130,
    }
    assert [name for name, bar in found.items() if not bar.met] == [
        "draft prefill over the unpruned draft's"
    ]


def test_a_bar_without_a_measurement_is_neither_met_nor_missed() -> None:
    records = run_records()[:1]
    found = bars(summarise(records), records, {})
    assert {bar.met for bar in found[:-1]} == {None}
    assert Bar("x", 1.0, True, 1.0).met is True
    assert Bar("x", 1.0, False, 1.01).met is False


def test_the_files_hold_every_record_the_bars_and_the_equality(tmp_path: Path) -> None:
    write(report(), tmp_path)
    data = json.loads((tmp_path / "results.json").read_text())
    assert len(data["records"]) == 5
    assert data["records"][0]["answers"][0]["tokens"] == 130
    assert data["draft_kv"][1] == {
        "workload": "2k",
        "configuration": "specvlm-0.1",
        "slots": 240,
        "bytes": 240 * 1024,
    }
    text = (tmp_path / "results.md").read_text()
    assert "| decode speedup over plain | at least 2.7 | 3 | met |" in text
    assert "| draft prefill over the unpruned draft's | at most 0.2 | 0.3 | MISSED |" in text
    assert "240 KiB" in text
    assert "8/8" in text


def test_a_terminal_of_eighty_columns_has_room_for_the_tables() -> None:
    output = io.StringIO()
    show(report(), Console(file=output, width=80))
    shown = output.getvalue()
    assert "…" not in shown
    assert "specvlm-0.1" in shown
    assert "MISSED" in shown


def test_plots_are_drawn_of_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = plots.draw(report().rows, tmp_path, "a note")
    assert [file.name for file in written] == ["retention.png", "concurrency.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in written)


def test_plots_without_matplotlib_are_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ToolError, match="plots need matplotlib: pip install matplotlib"):
        plots.draw([], tmp_path, "")
