"""``specvlm bench``: start the servers, let them answer in turns, say what it took."""

from __future__ import annotations

import argparse
import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.text import Text

from specvlm_sglang.tools.bench.bars import bars
from specvlm_sglang.tools.bench.configurations import MAIN, PLAIN, Configuration, configuration
from specvlm_sglang.tools.bench.environment import environment
from specvlm_sglang.tools.bench.measure import Record, draft_slots, measure, rotated, warm_up
from specvlm_sglang.tools.bench.report import Report, show, write
from specvlm_sglang.tools.bench.servers import (
    BenchServer,
    batches,
    launch_arguments,
    servers_that_fit,
)
from specvlm_sglang.tools.bench.summary import METRICS, summarise
from specvlm_sglang.tools.bench.workloads import (
    LONG_ANSWER,
    Task,
    Workload,
    clip_tasks,
    dataset_mm_config,
    long_scenes,
    mm_config,
    sample_tasks,
)
from specvlm_sglang.tools.pair import Pair, Template, pair, slot_bytes
from specvlm_sglang.tools.server import DemoError, free_port, wait_until_ready

START_SECONDS = 1800.0
_VISION_CACHE = "SGLANG_VLM_CACHE_SIZE_MB"


@dataclass(frozen=True)
class Plan:
    """Workloads with their tasks per round, and the configurations of each."""

    workloads: tuple[Workload, ...]
    tasks: dict[str, list[list[Task]]]
    configurations: dict[str, list[Configuration]]
    mm_config: dict[str, Any]
    rule: str

    @property
    def servers(self) -> list[str]:
        """The servers that are needed, plain decoding first."""
        every = [c.server for chosen in self.configurations.values() for c in chosen]
        return sorted(dict.fromkeys(every), key=lambda server: server != PLAIN)


def run(options: argparse.Namespace, console: Console | None = None) -> int:
    """Run the benchmark; returns the exit status. Nothing it started survives it."""
    console = console or Console()
    try:
        with tempfile.TemporaryDirectory(prefix="specvlm-bench-") as folder:
            _run(options, console, Path(folder))
    except (DemoError, ValueError, OSError, RuntimeError, httpx.HTTPError) as error:
        console.print(Text(f"specvlm bench: {error}", style="red"), soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    return 0


def _run(options: argparse.Namespace, console: Console, folder: Path) -> None:
    started = time.monotonic()
    _check(options)
    about = environment()
    with console.status("preparing the models"):
        models = pair(options.target, options.draft, options.parameters)
        template = Template(models.target)
    plan = _plan(options, models, template, folder)
    console.print(Text(f"{models.note}. {plan.rule}", style="dim"))
    at_once = options.servers_at_once or servers_that_fit(models.target)
    records: list[Record] = []
    slots: dict[tuple[str, str], int] = {}
    warm: set[tuple[int, str, int]] = set()
    servers: dict[str, dict[str, Any]] = {}
    for batch, names in enumerate(batches(plan.servers, at_once)):
        with ExitStack() as stack:
            alive = _start(options, models, plan, names, stack, folder, console)
            for workload in plan.workloads:
                records += _workload(plan, workload, alive, template, slots, warm, batch, console)
            for name, (server, arguments) in alive.items():
                servers[name] = {
                    "arguments": shlex.join(arguments),
                    "peak_resident_bytes": server.peak_memory_bytes(),
                    "gpu_bytes": server.gpu_memory_bytes(),
                    "draft_kv_capacity": server.state().get("draft_kv_tokens"),
                }
    about |= {
        "pair": models.note,
        "seconds": round(time.monotonic() - started),
        "servers_at_once": at_once,
        "workloads": {workload.name: asdict(workload) for workload in plan.workloads},
        "notes": _notes(options, about, models, plan, at_once),
    }
    rows = summarise(records)
    report = Report(
        about=about,
        servers=servers,
        records=records,
        rows=rows,
        bars={
            name: bars(rows, records, slots, name)
            for name in ([MAIN] if options.bars == [] else options.bars or ())
        },
        slots=slots,
        slot_bytes=slot_bytes(models.draft, options.dtype),
    )
    show(report, console)
    if options.out:
        from specvlm_sglang.tools.bench.plots import draw

        write(report, options.out)
        machine = f"{about['hardware']['cpu']}, {options.dtype}"
        note = f"{machine}; {models.note}; server's top-p {options.top_p:g}"
        draw(rows, options.out, note)
        console.print(f"written to {options.out}")


def _check(options: argparse.Namespace) -> None:
    if (options.dataset is None) != (options.data is None):
        raise ValueError("--dataset and --data go together")
    if options.dataset is not None and options.target is None:
        raise ValueError(
            "--dataset needs --target and --draft: the shipped pair knows no such video"
        )
    for name, least in (("steps", 1), ("rounds", 1), ("limit", 1), ("servers_at_once", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} {value} must be at least {least}")
    for name in options.bars or ():
        configuration(name)
    chosen = [configuration(name) for name in options.configurations or [PLAIN]]
    if all(c.server != PLAIN for c in chosen):
        raise ValueError(f"--configurations must contain {PLAIN}: everything is compared with it")
    if not 0 <= options.top_p <= 1:
        raise ValueError(f"--top-p {options.top_p} must lie in [0, 1]")


def _plan(options: argparse.Namespace, models: Pair, template: Template, folder: Path) -> Plan:
    """What is asked of whom."""
    wanted = [configuration(name) for name in options.configurations or ()]
    if options.dataset is not None:
        return _dataset_plan(options, wanted)
    chosen = tuple(
        replace(workload, rounds=options.rounds or workload.rounds)
        for workload in options.workloads
    )
    seeds = long_scenes(template.count)
    return Plan(
        workloads=chosen,
        tasks={workload.name: clip_tasks(workload, seeds, folder) for workload in chosen},
        configurations={
            workload.name: wanted or [configuration(name) for name in workload.configurations]
            for workload in chosen
        },
        mm_config=mm_config(),
        rule=(
            f"Clips: the first scenes whose true description has at least {LONG_ANSWER} tokens; "
            "every round asks about other ones"
        ),
    )


def _dataset_plan(options: argparse.Namespace, wanted: list[Configuration]) -> Plan:
    from specvlm_sglang.tools.bench.datasets import load
    from specvlm_sglang.tools.bench.workloads import WORKLOADS

    samples = load(options.dataset, options.data, options.limit)
    if not samples:
        raise ValueError(f"--data {options.data} has no sample of {options.dataset}")
    name = options.dataset
    workload = Workload(
        name=name,
        about=f"{len(samples)} samples of {name}, {samples[0].frames} frames",
        side=0,
        configurations=WORKLOADS["2k"].configurations,
        rounds=len(samples),
        max_tokens=samples[0].max_tokens,
    )
    return Plan(
        workloads=(workload,),
        tasks={name: sample_tasks(samples)},
        configurations={name: wanted or [configuration(c) for c in workload.configurations]},
        mm_config=dataset_mm_config(samples[0].frames),
        rule=f"Samples: the first {len(samples)} of {name}",
    )


def _start(
    options: argparse.Namespace,
    models: Pair,
    plan: Plan,
    names: Sequence[str],
    stack: ExitStack,
    folder: Path,
    console: Console,
) -> dict[str, tuple[BenchServer, list[str]]]:
    alive = {}
    with _environment({_VISION_CACHE: "0"}):
        for name in names:
            arguments = launch_arguments(
                name,
                draft=models.draft,
                dtype=options.dtype,
                steps=options.steps,
                tree=tuple(options.tree),
                top_p=options.top_p,
                mm_config=plan.mm_config,
                exact_vision=models.shipped,
                more=shlex.split(options.launch),
            )
            log = folder / f"{name}.log"
            server = BenchServer(models.target, arguments, port=free_port(), log=log)
            alive[name] = (stack.enter_context(server), arguments)
    title = f"starting {', '.join(names)}"
    with console.status(title) as status:
        wait_until_ready(
            [server for server, _ in alive.values()],
            START_SECONDS,
            lambda seconds: status.update(f"{title}: {seconds:.0f} s"),
        )
    return alive


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Variables for the servers that are started meanwhile.

    Without its cache of vision features, a server encodes a video anew after every flush.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _workload(
    plan: Plan,
    workload: Workload,
    alive: dict[str, tuple[BenchServer, list[str]]],
    template: Template,
    slots: dict[tuple[str, str], int],
    warm: set[tuple[int, str, int]],
    batch: int,
    console: Console,
) -> list[Record]:
    chosen = [c for c in plan.configurations[workload.name] if c.server in alive]
    rounds = plan.tasks[workload.name]
    first = rounds[0][0]
    if all(c.server == PLAIN for c in chosen) and len(alive) > 1:
        return []
    for user in chosen:
        # Threads, buffers and caches of the allocator settle per server and size of a video.
        if (batch, user.server, workload.side) not in warm:
            warm.add((batch, user.server, workload.side))
            warm_up(alive[user.server][0], user, first, template.render)
    if workload.concurrency == workload.questions == 1:
        for user in chosen:
            if user.server != PLAIN:
                found = draft_slots(alive[user.server][0], user, first, template.render)
                if found is not None:
                    slots[workload.name, user.name] = found
    records = []
    for index, tasks in enumerate(rounds):
        for user in rotated(chosen, index):
            server = alive[user.server][0]
            with console.status(f"{workload.name}, round {index + 1}: {user.name}"):
                record = measure(
                    server, user, workload, tasks, template.render, batch=batch, index=index
                )
            records.append(record)
            console.print(Text(_progress(record), style="dim"), soft_wrap=True)
    return records


def _progress(record: Record) -> str:
    values = {name: METRICS[name](record) for name in ("first_token_seconds", "accept_length")}
    rate = METRICS["decode_tokens_per_second"](record) or 0.0
    return (
        f"{record.workload} {record.round + 1} {record.configuration}: first token "
        f"{values['first_token_seconds']:.2f} s, {rate:.1f} tokens/s, "
        f"{values['accept_length'] or 0:.2f} per round, {record.seconds:.1f} s in all"
    )


def _notes(
    options: argparse.Namespace, about: dict[str, Any], models: Pair, plan: Plan, at_once: int
) -> list[str]:
    hardware = about["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    machine = f"{hardware['cores']} cores of {hardware['cpu']}"
    machine += f", {hardware['memory_bytes'] / 2**30:.0f} GiB"
    turns = (
        "Servers live at the same time and answer in turns, never two at once; the order rotates "
        "from round to round. Ratios are those of the same round."
        if at_once > 1
        else "Servers were measured one after the other: memory does not hold two."
    )
    return [
        f"Pair: {models.note}.",
        f"Machine: {'; '.join([machine, *hardware['gpus']])}. {versions}.",
        f"Commit: {about['commit']}.",
        f"{options.dtype}. Chain of {options.steps}; trees of depth {options.tree[0]}, "
        f"{options.tree[1]} branches a node, {options.tree[2]} verified tokens. Names are policy, "
        f"share kept, and Stage I's top-p where it is not {options.top_p:g}.",
        f"{plan.rule}. Caches are emptied before each measurement.",
        turns,
        "Medians, and in brackets the smallest and the largest, over the rounds. Accept length: "
        "tokens emitted per verify round, bonus included.",
    ]
