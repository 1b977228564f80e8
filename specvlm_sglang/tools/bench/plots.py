"""Plots of a run: speedup over retention, over video length, over concurrency."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specvlm_sglang.tools.bench.configurations import MAIN, PAPER, TREE, configuration
from specvlm_sglang.tools.bench.summary import Row, Spread
from specvlm_sglang.tools.bench.workloads import MAIN_WORKLOAD
from specvlm_sglang.tools.errors import ToolError

_STYLES = {"decode": "-", "end to end": "--", "all together": "-."}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_NOTE_WIDTH = 110
_USERS = {MAIN: "server's top-p", PAPER: "top-p 0.4"}
_LENGTHS = {"512": 512, MAIN_WORKLOAD: 2048, "8k": 8192, "16k": 16928}
_TOGETHER = {MAIN_WORKLOAD: 1, f"{MAIN_WORKLOAD}-x4": 4, f"{MAIN_WORKLOAD}-x8": 8}


def draw(rows: Sequence[Row], folder: Path, note: str) -> list[Path]:
    """Write what this run can show as PNG files into ``folder``.

    Parameters
    ----------
    rows
        Of the run.
    note
        Printed under each plot.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    ToolError
        matplotlib is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise ToolError("plots need matplotlib: pip install matplotlib") from None
    written = []
    for name, plot in (
        ("retention", _over_retention),
        ("length", _over_length),
        ("concurrency", _over_concurrency),
    ):
        figure, axes = pyplot.subplots(figsize=(6.4, 4.8), layout="constrained")
        if plot(axes, rows):
            axes.axhline(1, color="0.5", linewidth=1, linestyle=":")
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.25)
            figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
            figure.supxlabel(textwrap.fill(note, _NOTE_WIDTH), fontsize=7, color="0.35")
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=150)
        pyplot.close(figure)
    return written


def _over_retention(axes: Any, rows: Sequence[Row]) -> bool:
    groups: dict[str, dict[float, Row]] = {}
    for row in rows:
        made = configuration(row.configuration)
        if row.workload != MAIN_WORKLOAD or made.policy != "specvlm" or made.retention is None:
            continue
        stage_one = "server's top-p" if made.top_p is None else f"top-p {made.top_p:g}"
        group = f"{'tree' if made.server == TREE else 'chain'}, {stage_one}"
        groups.setdefault(group, {})[made.retention] = row
    drawn = False
    for colour, (group, found) in zip(_COLOURS, groups.items(), strict=False):
        for label, ratio in (("decode", "decode_speedup"), ("end to end", "latency_speedup")):
            points = {share: row.ratios[ratio] for share, row in found.items()}
            drawn |= _line(axes, points, f"{label}, {group}", _STYLES[label], colour)
    axes.set_xscale("log")
    axes.set_xticks([0.05, 0.1, 0.25, 0.5, 1.0], ["0.05", "0.1", "0.25", "0.5", "1 (unpruned)"])
    axes.minorticks_off()
    axes.set_xlabel("share of the video tokens that the draft keeps")
    axes.set_ylabel("speedup over plain decoding")
    return drawn


def _over_length(axes: Any, rows: Sequence[Row]) -> bool:
    drawn = _over_workloads(
        axes,
        rows,
        _LENGTHS,
        (("decode", "decode_speedup"), ("end to end", "latency_speedup")),
    )
    axes.set_xscale("log")
    axes.set_xticks(list(_LENGTHS.values()), [f"{n:,}" for n in _LENGTHS.values()])
    axes.minorticks_off()
    axes.set_xlabel("video tokens")
    axes.set_ylabel("speedup, draft keeps 0.1")
    return drawn


def _over_concurrency(axes: Any, rows: Sequence[Row]) -> bool:
    drawn = _over_workloads(
        axes,
        rows,
        _TOGETHER,
        (("all together", "throughput_speedup"), ("decode", "decode_speedup")),
    )
    axes.set_xticks(list(_TOGETHER.values()))
    axes.set_xlabel("requests at the same time")
    axes.set_ylabel("speedup, draft keeps 0.1")
    return drawn


def _over_workloads(
    axes: Any, rows: Sequence[Row], places: dict[str, int], ratios: Sequence[tuple[str, str]]
) -> bool:
    drawn = False
    for colour, (user, name) in zip(_COLOURS, _USERS.items(), strict=False):
        for label, ratio in ratios:
            points = {
                places[row.workload]: row.ratios[ratio]
                for row in rows
                if row.configuration == user and row.workload in places
            }
            if len(points) > 1:
                drawn |= _line(axes, points, f"{label}, {name}", _STYLES[label], colour)
    return drawn


def _line(axes: Any, points: Any, label: str, style: str, colour: str) -> bool:
    """Medians, with bars from the smallest to the largest; whether there was anything to draw."""
    known: list[tuple[float, Spread]] = sorted(
        ((place, spread) for place, spread in points.items() if spread is not None),
        key=lambda point: point[0],
    )
    if not known:
        return False
    spreads = [spread for _, spread in known]
    axes.errorbar(
        [place for place, _ in known],
        [spread.median for spread in spreads],
        yerr=(
            [spread.median - spread.low for spread in spreads],
            [spread.high - spread.median for spread in spreads],
        ),
        fmt=f"o{style}",
        color=colour,
        capsize=3,
        label=label,
    )
    return True
