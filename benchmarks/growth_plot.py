"""The picture of `benchmarks.growth`: time and memory over the length of the video."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(record: dict[str, Any], path: Path) -> None:
    """Plot a record of `benchmarks.growth`.

    Parameters
    ----------
    record : dict
        With `measurements` and `slopes`.
    path : Path
        Picture to write; its ending says the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (times, memory) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for op, slopes in record["slopes"].items():
        if op == "scoring by rows":
            continue
        here = [m for m in record["measurements"] if m["op"] == op]
        tokens = [m["video_tokens"] for m in here]
        label = op if slopes["time"] is None else f"{op} (slope {slopes['time']:.2f})"
        times.plot(tokens, [m["median"] * 1e3 for m in here], marker="o", label=label)
        memory.plot(tokens, [m["peak_bytes"] / 1e6 for m in here], marker="o")
    scored = [m for m in record["measurements"] if m["op"] == "scoring"]
    tokens = [m["video_tokens"] for m in scored]
    heads = record["scoring_heads"]
    attention_map = [m["rows"] * m["video_tokens"] * heads * 4 / 1e6 for m in scored]
    memory.plot(tokens, attention_map, "k:", label="a float32 attention map (not stored)")
    times.set(title="one layer, one call", ylabel="ms")
    memory.set(title="peak beyond the inputs", ylabel="MB")
    for panel in (times, memory):
        panel.set(xscale="log", yscale="log", xlabel="video tokens")
        panel.set_xticks(tokens, [f"{n // 1024}k" if n >= 1024 else str(n) for n in tokens])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
