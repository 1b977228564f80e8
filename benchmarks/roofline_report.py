"""Shows the record of `benchmarks.roofline`: Markdown to read, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def markdown(record: dict[str, Any], hardware: Sequence[str]) -> str:
    """Both tables as Markdown.

    Parameters
    ----------
    record : dict
        Of `benchmarks.roofline.record`.
    hardware : sequence of str
        Columns of computed numbers, besides the measurement's own.
    """
    lines = [
        "# Roofline",
        "",
        "**Computed, not measured.** `tools.sizing.cost` counts bytes and operations at the peak",
        "rates of the data sheets; host work, kernel launches, sampling and communication cost",
        "nothing. Accept lengths are tokens per verify round, bonus included.",
        "",
        "## Beside published measurements",
        "",
        "Published and computed numbers are decode speedups over plain decoding. The residual is",
        "published minus computed on the hardware of the measurement. Where no accept length was",
        "published, the last column says which one the speedup needs at the least.",
        "",
    ]
    heads = ["source", "pair", "drafting", "on", "accept length", "published"]
    heads += [f"computed, {name}" for name in hardware]
    heads += ["computed there", "residual", "reached", "accept length needed"]
    rows = [_published_cells(row, hardware) for row in record["published"]]
    lines += [*_table(heads, rows), ""]
    notes = dict.fromkeys((row["source"], row["note"]) for row in record["published"])
    lines += [f"- {source}: {note}." for source, note in notes]
    lines += [
        "",
        "A negative residual is time that the model leaves out: the smaller the models, the more",
        "of a round is overhead. A positive one, or an accept length beyond what a round can",
        "give, means that the measured ratio of target to draft step is not that of the bytes",
        "moved: a target slower than its roofline, for example, or attention that expands grouped",
        "KV heads, so that pruning gains more than its bytes. Residuals near 0 rest on the",
        "assumptions above as much as the others do.",
    ]
    lines += [
        "",
        "## What pruning to 10 % would buy",
        "",
        "ParallelVLM's accept lengths for the pruned draft, and 1/0.9 of them, at most one more",
        "than the steps, for the unpruned one. One device per pair, as if the models fitted: with",
        "more devices all times shrink alike. TTFT is the time to the first token; the draft's",
        "vision tower and prefill come after it (draft start).",
        "",
    ]
    heads = ["pair", "on", "batch", "plain TTFT, ms", "pruned TTFT"]
    heads += ["unpruned draft start, ms", "pruned draft start"]
    heads += ["unpruned decode", "pruned decode", "unpruned end to end", "pruned end to end"]
    heads += ["scoring, ms", "draft KV saved, MB"]
    lines += _table(heads, [_predicted_cells(row) for row in record["predictions"]])
    lines += _own(record)
    lines += [
        "",
        "## A target that drafts for itself",
        "",
        "No draft model: a draft step is a step of the target that reads a tenth of the video's",
        "keys and values. A round pays from the accept length on that it costs in plain steps. No",
        "accept length is assumed; one above the steps is the most that a round can give. The",
        "ratios hold for as many devices as the weights and the KV cache take.",
        "",
    ]
    heads = ["target", "on", "video tokens", "batch", "KV share of a step's bytes"]
    heads += ["draft step / plain step", "drafts a round", "pays from accept length"]
    heads += ["decode, all accepted"]
    lines += _table(heads, [_alone_cells(row) for row in record["self_predictions"]])
    return "\n".join(lines) + "\n"


def _own(record: dict[str, Any]) -> list[str]:
    """The predictions for our rounds, and how to refute them."""
    (low_kernel, low_launch), (high_kernel, high_launch) = (
        (kernel * 1e6, launch * 1e6) for kernel, launch in record["overheads"].values()
    )
    least, _ = record["accepted"]
    lines = [
        "",
        "## Predicted for our rounds",
        "",
        "The same with what a round takes besides: every kernel of a pass "
        f"{low_kernel:g} to {high_kernel:g} µs",
        f"beyond its bytes, and {record['round_launches']} launches around the passes "
        f"{low_launch:g} to {high_launch:g} µs each, which are counted in",
        "a run without a GPU; plain decoding is given none of the latter. These times are",
        f"assumptions. From the high ones and {least:.0%} of the published accept length to the",
        "low ones and all of it. **No GPU has run this.** To refute it:",
        "",
        "```bash",
        "specvlm bench --target TARGET --draft DRAFT --dataset videodetailcaption --data FOLDER \\",
        "    --configurations plain specvlm-0.1 --steps 5 --out DIR",
        "```",
        "",
    ]
    heads = ["pair", "on", "batch", "accept length", "round, ms", "decode, no overhead"]
    heads += ["decode, predicted", "end to end, predicted"]
    return lines + _table(heads, [_own_cells(row) for row in record["own_predictions"]])


def draw(record: dict[str, Any], path: Path) -> None:
    """Plot published and computed speedups side by side.

    Parameters
    ----------
    record : dict
        Of `benchmarks.roofline.record`.
    path : Path
        Picture to write; its ending says the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in record["published"] if row["computed"]]
    places = range(len(rows))
    figure, panel = pyplot.subplots(figsize=(9, 4.2))
    published = [row["speedup"] for row in rows]
    computed = [row["computed"][row["hardware"]] for row in rows]
    panel.barh([p - 0.2 for p in places], published, 0.38, label="published, measured by others")
    panel.barh([p + 0.2 for p in places], computed, 0.38, label="computed (roofline, no overhead)")
    for place, row in zip(places, rows, strict=True):
        longest = max(row["speedup"], row["computed"][row["hardware"]])
        panel.text(longest + 0.05, place, f"residual {row['residual']:+.2f}", va="center")
    labels = [f"{_pair(row)}\n{row['source'].partition(',')[0]}, {row['hardware']}" for row in rows]
    panel.set_yticks(list(places), labels, fontsize=8)
    panel.invert_yaxis()
    panel.axvline(1, color="black", linewidth=0.8)
    panel.set(xlabel="decode speedup over plain decoding", xlim=(0, max(computed) + 1))
    panel.legend(loc="upper right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _published_cells(row: dict[str, Any], hardware: Sequence[str]) -> list[str]:
    steps, tokens = row["draft_steps"], row["draft_tokens"]
    computed, there = row["computed"], row["hardware"]
    cells = [
        row["source"],
        _pair(row),
        f"chain of {steps}" if tokens == steps + 1 else f"tree of {tokens}, {steps} deep",
        there or "not stated",
        _number(row["accept_length"]),
        f"{row['speedup']:.3g}x",
        *(_number(computed.get(name), "x") for name in hardware),
        _number(computed.get(there), "x"),
        "" if row["residual"] is None else f"{row['residual']:+.2f}",
        "" if row["share_reached"] is None else f"{row['share_reached']:.0%}",
    ]
    return [*cells, "" if computed else _needed(row)]


def _needed(row: dict[str, Any]) -> str:
    needed = row["accept_length_needed"]
    values = [needed[row["hardware"]]] if row["hardware"] else list(needed.values())
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    most = row["draft_steps"] + 1
    beyond = f" (more than {most})" if min(values) > most else ""
    return (low if low == high else f"{low} to {high}") + beyond


def _predicted_cells(row: dict[str, Any]) -> list[str]:
    paths = [row[name] for name in ("plain", "unpruned", "pruned")]
    return [
        _pair(row),
        row["hardware"],
        str(row["batch"]),
        *(f"{path['time_to_first_token'] * 1e3:,.0f}" for path in (paths[0], paths[2])),
        *(f"{path['draft_start_seconds'] * 1e3:,.0f}" for path in paths[1:]),
        *(f"{path['decode_speedup']:.2f}x" for path in paths[1:]),
        *(f"{path['end_to_end_speedup']:.2f}x" for path in paths[1:]),
        f"{row['scoring_seconds'] * 1e3:.2f}",
        f"{row['draft_kv_bytes_saved'] / 1e6:,.0f}",
    ]


def _own_cells(row: dict[str, Any]) -> list[str]:
    low, high = row["low"], row["high"]
    return [
        _pair(row),
        row["hardware"],
        str(row["batch"]),
        f"{row['accept_length']:.2f}",
        f"{high['round_ms']:.1f} to {low['round_ms']:.1f}",
        f"{row['no_overhead']['decode']:.2f}x",
        f"{low['decode']:.2f}x to {high['decode']:.2f}x",
        f"{low['end_to_end']:.2f}x to {high['end_to_end']:.2f}x",
    ]


def _alone_cells(row: dict[str, Any]) -> list[str]:
    return [
        row["target"],
        row["hardware"],
        f"{row['video_tokens']:,}",
        str(row["batch"]),
        f"{row['kv_share']:.0%}",
        f"{row['draft_over_plain']:.2f}",
        str(row["draft_steps"]),
        f"{row['break_even_accept_length']:.2f}",
        f"{row['highest_speedup']:.2f}x",
    ]


def _pair(row: dict[str, Any]) -> str:
    family, _, size = row["target"].rpartition("-")
    return f"{family} {size} / {row['draft'].rpartition('-')[2]}"


def _number(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:.2f}{unit}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]
