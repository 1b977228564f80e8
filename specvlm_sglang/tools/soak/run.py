"""``specvlm soak``: plain decoding answers first, then the load, then a look at what is left."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from specvlm_sglang.tools import client, demo
from specvlm_sglang.tools.bench.environment import cpu_name
from specvlm_sglang.tools.bench.servers import peak_memory_bytes
from specvlm_sglang.tools.chat import data_url
from specvlm_sglang.tools.errors import ToolError
from specvlm_sglang.tools.launch import common_arguments, specvlm_arguments
from specvlm_sglang.tools.pair import choose_pair
from specvlm_sglang.tools.server import Server, wait_until_ready
from specvlm_sglang.tools.soak.health import snapshot
from specvlm_sglang.tools.soak.load import WHOLE, Job, Load, Question, questions
from specvlm_sglang.tools.soak.record import Record
from specvlm_sglang.tools.soak.sending import Sender, spread

WARM_SHARE = 0.3
"""Of the load, until what the server holds is called its own."""
_FIRST_SCENE = 7_000_000_000
_UNTOLD = ("run", "out", "command")
"""Options that a record does not repeat."""


def run(options: argparse.Namespace, console: Console | None = None) -> int:
    """Run the soak; returns 0 where nothing differed, failed or leaked, else 1.

    Raises
    ------
    ToolError, ValueError, OSError
        It cannot run; the message is one sentence.
    """
    if options.minutes <= 0:
        raise ToolError(f"--minutes {options.minutes} must be above 0")
    if options.concurrency < 1:
        raise ToolError(f"--concurrency {options.concurrency} must be at least 1")
    console = console or Console()
    pair = choose_pair(options.target, options.draft, 0, console)
    with tempfile.TemporaryDirectory(prefix="specvlm-soak-") as name:
        folder = Path(name)
        asked = questions(*media(folder))
        common = common_arguments(options.dtype, kv_tokens=options.kv_tokens)
        plain = Server(pair.target, common, log=folder / "plain.log")
        with console.status("plain decoding answers"), plain:
            wait_until_ready([plain])
            expected = asyncio.run(answers(plain.url, asked))
        arguments = (
            *common,
            *specvlm_arguments(pair.draft, steps=options.steps),
            *shlex.split(options.launch),
        )
        served = Server(pair.target, arguments, log=folder / "specvlm.log")
        with console.status("load") as status, served:
            wait_until_ready([served])
            figures = soak(
                served.url,
                served.processes,
                asked,
                expected,
                seconds=60 * options.minutes,
                concurrency=options.concurrency,
                seed=options.seed,
                progress=lambda requests: status.update(f"load: {requests} requests"),
            )
            peak = peak_memory_bytes(served.processes())
            tail = served.log_text().splitlines()[-40:]
    about = {"machine": cpu_name(), "pair": pair.note}
    about |= {name: str(value) for name, value in vars(options).items() if name not in _UNTOLD}
    whole = {"about": about, "peak_resident_bytes": peak, **figures.as_dict()}
    if options.out is not None:
        options.out.write_text(json.dumps(whole, indent=1) + "\n")
    show(figures, console)
    if figures.failed:
        console.print("\n".join(tail), markup=False, highlight=False)
    return 0 if figures.is_good else 1


def media(folder: Path) -> tuple[list[str], list[str]]:
    """Data URLs of three drawn clips and a picture of one, written to ``folder``."""
    import av

    videos = []
    for number, (seconds, side) in enumerate([(4, 112), (8, 112), (4, 168)]):
        path = folder / f"clip-{number}.mp4"
        demo.make_clip(path, _FIRST_SCENE + number, seconds=seconds, side=side)
        videos.append(data_url(path))
    with av.open(str(folder / "clip-0.mp4")) as container:
        frame = next(container.decode(video=0))
        frame.to_image().save(folder / "frame.png")
    picture = data_url(folder / "frame.png").replace("video/mp4", "image/png")
    return videos, [picture]


async def answers(url: str, asked: Sequence[Question]) -> dict[str, tuple[str, ...]]:
    """Ask each greedy question alone; its texts by name.

    Raises
    ------
    ToolError
        One was not answered; with what was said instead.
    """
    sender, found = Sender(url), {}
    for question in asked:
        if not question.is_greedy:
            continue
        outcome = await sender.send(Job(question, WHOLE, {}, 0.0))
        if outcome.kind != "answered":
            raise ToolError(f"{question.name}: {outcome.said}")
        found[question.name] = outcome.texts
    await sender.close()
    return found


def soak(
    url: str,
    processes: Callable[[], Sequence[psutil.Process]],
    asked: Sequence[Question],
    expected: dict[str, tuple[str, ...]],
    *,
    seconds: float,
    concurrency: int,
    seed: int = 0,
    progress: Callable[[int], None] = lambda requests: None,
) -> Record:
    """Put a server under load and look at it before, within and afterwards.

    Parameters
    ----------
    url, processes
        The server's; the latter as of now.
    asked, expected
        Questions, and the texts that greedy ones have (`answers`).
    seconds, concurrency
        How long, and how many requests at once.
    seed
        Of the draw.
    progress
        Told the requests so far.

    Raises
    ------
    ToolError
        The server does not come to rest, or is gone.
    """
    figures, load = Record(expected), Load(asked, seed)
    started = time.monotonic()
    figures.snapshots["before"] = snapshot(url, processes())
    counted = client.specvlm_state(url)
    parts = (("warm", WARM_SHARE * seconds), ("after", (1 - WARM_SHARE) * seconds))
    for name, length in parts:
        asyncio.run(_load(url, load, figures, length, concurrency, seed, progress))
        figures.snapshots[name] = snapshot(url, processes())
    figures.seconds = time.monotonic() - started
    figures.counters = {
        name: value - counted.get(name, 0)
        for name, value in client.specvlm_state(url).items()
        if name in ("requests", "video_requests", "cold_at_prefill", "went_cold", "score_fallbacks")
    }
    return figures


async def _load(
    url: str,
    load: Load,
    figures: Record,
    seconds: float,
    concurrency: int,
    seed: int,
    progress: Callable[[int], None],
) -> None:
    sender = Sender(url)
    deadline = time.monotonic() + seconds

    async def client_of(delay: float) -> None:
        await asyncio.sleep(delay)
        while time.monotonic() < deadline:
            job = load.next()
            figures.add(job, await sender.send(job))
            progress(figures.requests)

    await asyncio.gather(*(client_of(delay) for delay in spread(concurrency, seed)))
    await sender.close()


def show(figures: Record, console: Console) -> None:
    """Print the figures."""
    table = Table("", "before", "warm", "after")
    for name in figures.snapshots["before"].as_dict():
        values = [getattr(figures.snapshots[at], name) for at in ("before", "warm", "after")]
        if name == "resident_bytes":
            name, values = "resident MiB", [value >> 20 for value in values]
        table.add_row(name.replace("_", " "), *map(str, values))
    console.print(table)
    console.print(
        f"{figures.requests} requests in {figures.seconds:.0f} s, {figures.taken_off} taken off; "
        f"{figures.compared} greedy answers compared: {figures.mismatches} mismatches; "
        f"{figures.failed} failed; {len(figures.leaks)} leaks; {_lost(figures)}",
        highlight=False,
    )
    for line in [*figures.failures, *figures.leaks]:
        console.print(f"  {line}", style="red", markup=False, highlight=False)


def _lost(figures: Record) -> str:
    counters: dict[str, Any] = figures.counters
    return (
        f"{counters.get('cold_at_prefill', 0)} requests without a draft, "
        f"{counters.get('went_cold', 0)} lost theirs"
    )
