"""How time and memory of SPECVLM's own work grow with the length of the video, op by op.

    python -m benchmarks.growth --out benchmarks/results

No server and no trained weights: one layer of each model on random numbers, on the CPU, with the
ops that a server runs here. Scoring has the shape of a Qwen2.5-VL 7B layer; the draft is a layer of
width 1,024. Times are medians; memory is the peak of what an op allocates beyond its inputs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.draft_layer import DraftLayer
from benchmarks.growth_plot import draw
from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.pruning.selection import select_video_tokens, video_token_budget
from specvlm_sglang.scoring.attention_scores import accumulate_layer_scores
from specvlm_sglang.tools.bench.environment import environment

VIDEO_TOKENS = tuple(1024 << power for power in range(7))
ROWS = (16, 32, 64, 128, 256)
ROW_STUDY_TOKENS = 16 << 10
HEADS, KV_HEADS, HEAD_DIM = 28, 4, 128
TEXT_TOKENS = 64
"""Tokens of the question: the query rows, and the text that the draft reads besides the video."""
SLOPE_FROM = 8 << 10
"""Slopes are fitted from here on: below, fixed costs and a partly filled block hide the growth."""

LIMITS = {
    "scoring": 1.15,
    "selection": 1.25,
    "draft prefill": 1.5,
    "draft step": 1.15,
    "unpruned draft step": 1.15,
}
"""Largest slope of log(time) over log(N). Selection sorts; kept tokens attend to each other."""
MEMORY_LIMITS = {"scoring": 0.3}
"""Largest slope of log(peak bytes): a whole attention map would have slope 1."""


@dataclass(frozen=True)
class Measurement:
    """One op at one size.

    Attributes
    ----------
    rows, video_tokens
        Query rows, and video tokens before pruning.
    seconds
        Every repetition.
    peak_bytes
        Most that the op held at once beyond what existed before it.
    """

    op: str
    rows: int
    video_tokens: int
    seconds: tuple[float, ...]
    peak_bytes: int

    @property
    def median(self) -> float:
        """Median time in seconds."""
        return statistics.median(self.seconds)


def scoring(video_tokens: int, rows: int = TEXT_TOKENS) -> Callable[[], Any]:
    """One layer's language-to-video scores, bfloat16 queries and keys."""
    generator = torch.Generator().manual_seed(0)
    length = video_tokens + rows
    queries = torch.randn(rows, HEADS, HEAD_DIM, generator=generator).bfloat16()
    keys = torch.randn(length, KV_HEADS, HEAD_DIM, generator=generator).bfloat16()
    slots = torch.randperm(length, generator=generator)
    total = torch.zeros(video_tokens)
    rows_at, video_at = torch.arange(video_tokens, length), torch.arange(video_tokens)
    return lambda: accumulate_layer_scores(
        total, queries, keys, slots, rows_at, video_at, HEAD_DIM**-0.5
    )


def selection(video_tokens: int, retention: float) -> Callable[[], Any]:
    """Both stages, on scores of which a few hold most of the mass."""
    drawn = np.random.default_rng(0).lognormal(sigma=2.0, size=video_tokens)
    scores = torch.from_numpy((drawn / drawn.sum()).astype(np.float32))
    return lambda: select_video_tokens(scores, retention=retention, top_p=SpecVLMConfig.top_p)


def operations(video_tokens: int, retention: float) -> dict[str, Callable[[], Callable[[], Any]]]:
    """What is measured at one length: by name, a function that prepares the op."""
    kept = video_token_budget(video_tokens, retention) + TEXT_TOKENS
    return {
        "scoring": lambda: scoring(video_tokens),
        "selection": lambda: selection(video_tokens, retention),
        "draft prefill": lambda: DraftLayer(context=0, room=kept).prefill(kept),
        "draft step": lambda: DraftLayer(context=kept, room=1).step(),
        "unpruned draft step": lambda: DraftLayer(
            context=video_tokens + TEXT_TOKENS, room=1
        ).step(),
    }


def timed(op: Callable[[], Any], repeats: int) -> tuple[float, ...]:
    """Seconds of ``repeats`` calls, after one that is not counted."""
    op()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        op()
        seconds.append(time.perf_counter() - start)
    return tuple(seconds)


def peak_bytes(op: Callable[[], Any]) -> int:
    """Most that torch had allocated at once during ``op``, beyond what it had before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        op()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    changes.sort(key=lambda event: event["ts"])
    held = np.cumsum([event["args"]["Bytes"] for event in changes])
    return int(max(held.max(initial=0), 0))


def measure(
    name: str, prepare: Callable[[], Callable[[], Any]], tokens: int, rows: int, repeats: int
) -> Measurement:
    """Prepare an op, time it, and take its memory in a further call."""
    op = prepare()
    seconds = timed(op, repeats)
    return Measurement(name, rows, tokens, seconds, peak_bytes(op))


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of log(values) over log(sizes): 1 for linear growth, 0 for none.

    Raises
    ------
    ValueError
        Fewer than two sizes, or a number that is not positive.
    """
    if len(sizes) < 2 or min(*sizes, *values) <= 0:
        raise ValueError(f"slope needs two sizes and positive numbers, got {sizes} and {values}")
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def growth(measurements: Sequence[Measurement]) -> dict[str, dict[str, float | None]]:
    """Slopes of time and memory over N, and over the query rows for ``scoring by rows``.

    None where an op allocates nothing, or where fewer than two sizes are long enough.
    """
    slopes: dict[str, dict[str, float | None]] = {}
    for op in dict.fromkeys(m.op for m in measurements):
        here = [m for m in measurements if m.op == op]
        if op == "scoring by rows":
            sizes = [m.rows for m in here]
        else:
            here = [m for m in here if m.video_tokens >= SLOPE_FROM]
            sizes = [m.video_tokens for m in here]
        enough = len(here) > 1
        allocates = enough and all(m.peak_bytes > 0 for m in here)
        slopes[op] = {
            "time": slope(sizes, [m.median for m in here]) if enough else None,
            "memory": slope(sizes, [m.peak_bytes for m in here]) if allocates else None,
        }
    return slopes


def exceeded(slopes: dict[str, dict[str, float | None]]) -> list[str]:
    """Say of each op what grows faster than its limit allows."""
    return [
        f"{op}: {what} grows with slope {value:.2f}, above {limits[op]}"
        for what, limits in (("time", LIMITS), ("memory", MEMORY_LIMITS))
        for op, values in slopes.items()
        if op in limits and (value := values[what]) is not None and value > limits[op]
    ]


def table(measurements: Sequence[Measurement], slopes: dict[str, Any]) -> Table:
    """A line an op and size: time and memory; the slopes with each op's last line."""
    shown = Table("op", "rows", "video tokens", "ms", "peak MB", "slope of time", "of memory")
    for index, m in enumerate(measurements):
        last = index + 1 == len(measurements) or measurements[index + 1].op != m.op
        found = [slopes[m.op][what] for what in ("time", "memory")] if last else [None, None]
        cells = ["" if value is None else f"{value:.2f}" for value in found]
        sizes = str(m.rows), f"{m.video_tokens:,}"
        shown.add_row(m.op, *sizes, f"{m.median * 1e3:.2f}", f"{m.peak_bytes / 1e6:.2f}", *cells)
        if last:
            shown.add_section()
    return shown


def run(lengths: Sequence[int], retention: float, repeats: int) -> list[Measurement]:
    """Every op at every length, then scoring with more and more query rows."""
    jobs = [
        (name, operations(tokens, retention)[name], tokens, TEXT_TOKENS)
        for name in LIMITS
        for tokens in lengths
    ]
    at = min(ROW_STUDY_TOKENS, max(lengths))
    jobs += [("scoring by rows", lambda rows=rows: scoring(at, rows), at, rows) for rows in ROWS]
    return [measure(*job, repeats) for job in track(jobs, "Measuring", transient=True)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write ``growth.json`` and ``growth.png``; 1 where a limit is exceeded."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder")
    parser.add_argument("--retention", type=float, default=0.1, help="share of the video kept")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each op")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=list(VIDEO_TOKENS), help="video lengths"
    )
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats} must be at least 1")
    measurements = run(options.tokens, options.retention, options.repeats)
    slopes = growth(measurements)
    options.out.mkdir(parents=True, exist_ok=True)
    words = [
        "python",
        "-m",
        "benchmarks.growth",
        *(sys.argv[1:] if arguments is None else arguments),
    ]
    record = {
        **environment(),
        "command": shlex.join(words),
        "threads": torch.get_num_threads(),
        "retention": options.retention,
        "text_tokens": TEXT_TOKENS,
        "scoring_heads": HEADS,
        "slope_from_video_tokens": SLOPE_FROM,
        "slopes": slopes,
        "limits": {"time": LIMITS, "memory": MEMORY_LIMITS},
        "measurements": [{**asdict(m), "median": m.median} for m in measurements],
    }
    (options.out / "growth.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(record, options.out / "growth.png")
    console = Console()
    console.print(table(measurements, slopes))
    problems = exceeded(slopes)
    for problem in problems:
        console.print(f"[red]{problem}[/]")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
