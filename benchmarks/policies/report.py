"""Tables and picture of what was measured."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.policies.measure import BLIND, FULL
from benchmarks.policies.statistics import SetRounds

YARDSTICKS = ("specvlm", "uniform")
ENOUGH = 40
"""Prompts without which a set is listed but neither marked nor drawn."""
_DRAWN = (
    "specvlm",
    "uniform",
    "attention",
    "attention-spread",
    "attention-change-spread",
    "scope",
    "floc",
    "change",
    "specvlm-spread",
)


def write(folder: Path) -> None:
    """Write ``accept_length.csv``, ``.md`` and ``.png`` from ``rounds.json``; ``cost`` beside."""
    data = json.loads((folder / "rounds.json").read_text())
    sets = {name: SetRounds(part) for name, part in data.items()}
    rows = [row for name, found in sets.items() for row in _rows(name, found, data[name])]
    with (folder / "accept_length.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    text = "\n".join(line for name in sets for line in _table(rows, name))
    cost = folder / "cost.json"
    if cost.exists():
        text += "\n" + "\n".join(_cost_table(json.loads(cost.read_text())))
    (folder / "accept_length.md").write_text(_HEAD + text + "\n")
    if any(row["prompts"] >= ENOUGH for row in rows):
        draw(rows, folder / "accept_length.png")


_HEAD = """Tokens per verify round, bonus included, greedy chain of five. In brackets: the
difference from `specvlm` at the same retention, 95 % bootstrap interval over clips, on the same
prompts. Bold: the interval is above 0; italic: below it.

"""


def _rows(name: str, found: SetRounds, data: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for setting in data["rounds"]:
        policy, _, retention = setting.partition("@")
        low, high = found.interval(setting)
        row: dict[str, Any] = {
            "set": name,
            "prompts": found.prompts,
            "clips": found.clips,
            "policy": policy,
            "retention": float(retention),
            "accept_length": found.accept_length(setting),
            "low": low,
            "high": high,
        }
        for other in YARDSTICKS:
            versus = f"{other}@{retention}"
            known = versus in data["rounds"]
            values = found.difference(setting, versus) if known else ("", "", "")
            row |= dict(
                zip((f"vs_{other}", f"vs_{other}_low", f"vs_{other}_high"), values, strict=True)
            )
        rows.append({key: round(x, 4) if isinstance(x, float) else x for key, x in row.items()})
    return rows


def _table(rows: Sequence[dict[str, Any]], name: str) -> list[str]:
    here = [row for row in rows if row["set"] == name]
    ends = {f"{row['policy']}@{row['retention']:g}": row["accept_length"] for row in here}
    retentions = sorted({r["retention"] for r in here if r["policy"] != "none"}, reverse=True)
    few = "" if here[0]["prompts"] >= ENOUGH else " (too few to compare)"
    lines = [
        f"### {name}: {here[0]['prompts']} prompts about {here[0]['clips']} clips{few}",
        "",
        f"Whole video {ends[FULL]:.2f}, no video token {ends[BLIND]:.2f}.",
        "",
        "| policy | " + " | ".join(f"{share:g}" for share in retentions) + " |",
        "|---" * (1 + len(retentions)) + "|",
    ]
    for policy in dict.fromkeys(row["policy"] for row in here if row["policy"] != "none"):
        cells = [_cell(row) for row in here if row["policy"] == policy]
        lines.append(f"| `{policy}` | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cell(row: dict[str, Any]) -> str:
    value = f"{row['accept_length']:.2f}"
    low, high = row["vs_specvlm_low"], row["vs_specvlm_high"]
    if row["policy"] == "specvlm" or low == "":
        return value
    if row["prompts"] < ENOUGH:
        return f"{value} [{low:+.2f}, {high:+.2f}]"
    mark = "**" if low > 0 else "*" if high < 0 else ""
    return f"{mark}{value}{mark} [{low:+.2f}, {high:+.2f}]"


def _cost_table(cost: dict[str, Any]) -> list[str]:
    lengths = list(cost["lengths"])
    lines = [
        "### Cost of one selection",
        "",
        f"Milliseconds of CPU time, {cost['machine']}, one thread, 10 % kept, features of "
        f"{cost['width']} numbers; scores and features given. Least of {cost['repeats']}.",
        "",
        "| policy | " + " | ".join(f"{length} tokens" for length in lengths) + " |",
        "|---" * (1 + len(lengths)) + "|",
    ]
    for policy, times in cost["milliseconds"].items():
        cells = ["" if times.get(length) is None else f"{times[length]:.3g}" for length in lengths]
        lines.append(f"| `{policy}` | " + " | ".join(cells) + " |")
    return lines


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot accept length over retention, one panel a set; bands are 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["set"] for row in rows if row["prompts"] >= ENOUGH))
    figure, axes = pyplot.subplots(
        1, len(names), figsize=(4.2 * len(names), 4.2), squeeze=False, sharey=True
    )
    for panel, name in zip(axes[0], names, strict=True):
        here = [row for row in rows if row["set"] == name]
        for policy in _DRAWN:
            line = sorted(
                (row for row in here if row["policy"] == policy), key=lambda row: row["retention"]
            )
            places = [row["retention"] for row in line]
            panel.plot(places, [row["accept_length"] for row in line], marker="o", label=policy)
            panel.fill_between(
                places, [row["low"] for row in line], [row["high"] for row in line], alpha=0.1
            )
        for row in here:
            if row["policy"] == "none":
                panel.axhline(row["accept_length"], color="grey", linestyle=":")
        shares = sorted({row["retention"] for row in here if row["policy"] != "none"})
        panel.set_xscale("log")
        panel.set_xticks(shares, [f"{share:.1%}" for share in shares])
        panel.minorticks_off()
        panel.set(title=f"{name} ({here[0]['prompts']} prompts)", xlabel="video tokens kept")
        panel.grid(alpha=0.3)
    axes[0][0].set_ylabel("accept length (bonus included)")
    lines, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, fontsize=8, loc="lower center", ncols=len(labels))
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
