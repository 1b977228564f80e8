"""Shows accept length over retention: a picture, and a table to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SHOWN = ("specvlm", "attention", "uniform", "random", "frames", "window-front")
"""Lines of the picture where the table has more policies than a picture can bear."""
_TITLES = {
    ("training", False): "captions, 4 to 16 s (64 to 256 video tokens)",
    ("2k tokens", False): "captions, 64 frames (2,048 video tokens)",
}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot the table of `evaluate.acceptance`, one panel a kind of clip.

    Parameters
    ----------
    rows : sequence of dict
        Settings with `accept_length`, `low` and `high`.
    path : Path
        Picture to write; its ending says the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = {(row["clips"], row["asked"]) for row in rows}
    titles = {key: title for key, title in _TITLES.items() if key in measured}
    policies = list(dict.fromkeys(row["policy"] for row in rows if row["policy"] != "none"))
    shown = policies if len(policies) <= len(_SHOWN) else _SHOWN
    figure, axes = pyplot.subplots(
        1, len(titles), figsize=(5.5 * len(titles), 4.2), sharey=True, squeeze=False
    )
    panels = axes[0]
    for panel, ((clips, asked), title) in zip(panels, titles.items(), strict=True):
        here = [row for row in rows if row["clips"] == clips and row["asked"] == asked]
        usual = [row for row in here if row["scheme"] == "mrope" and row["top_p"] == 0.2]
        ends = [row for row in usual if row["policy"] == "none"]
        for policy in shown:
            line = [row for row in usual if row["policy"] == policy] + ends
            line.sort(key=lambda row: row["retention"])
            places = [_place(row["retention"]) for row in line]
            panel.plot(places, [row["accept_length"] for row in line], marker="o", label=policy)
            panel.fill_between(
                places, [row["low"] for row in line], [row["high"] for row in line], alpha=0.12
            )
        retentions = sorted({row["retention"] for row in usual})
        panel.set_xticks([_place(r) for r in retentions], [f"{r:.0%}" for r in retentions])
        panel.set(title=title, xlabel="video tokens kept")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accept length (bonus included)")
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def tabulate(rows: Sequence[dict[str, Any]]) -> str:
    """The same rows as Markdown: a line a setting, a column a retention, intervals in brackets."""
    lines = ["Tokens per verify round, bonus included; 95 % bootstrap interval over prompts."]
    kept = sorted({row["retention"] for row in rows}, reverse=True)
    for clips, asked in dict.fromkeys((row["clips"], row["asked"]) for row in rows):
        here = [row for row in rows if row["clips"] == clips and row["asked"] == asked]
        title = f"{clips}, {'questions' if asked else 'captions'}, {here[0]['prompts']} prompts"
        lines += ["", f"### {title}", "", "| policy | positions | top_p | "]
        lines[-1] += " | ".join(f"{retention:.0%}" for retention in kept) + " |"
        lines.append("|---" * (3 + len(kept)) + "|")
        for key in dict.fromkeys((row["policy"], row["scheme"], row["top_p"]) for row in here):
            cells = {
                row[
                    "retention"
                ]: f"{row['accept_length']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
                for row in here
                if (row["policy"], row["scheme"], row["top_p"]) == key
            }
            values = [str(part) for part in key] + [cells.get(r, "") for r in kept]
            lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def _place(retention: float) -> float:
    return [0.0, 0.05, 0.1, 0.25, 0.5, 1.0].index(retention)
