"""``specvlm bench``: start the servers, let them answer in turns, say what it took."""

from __future__ import annotations

import argparse
import shlex
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from specvlm_sglang.models.configs import read_config
from specvlm_sglang.tools.bench import against
from specvlm_sglang.tools.bench.bars import bars
from specvlm_sglang.tools.bench.configurations import (
    MAIN,
    NGRAM,
    PLAIN,
    Configuration,
    configuration,
)
from specvlm_sglang.tools.bench.environment import environment
from specvlm_sglang.tools.bench.measure import Record, draft_slots, measure, rotated, warm_up
from specvlm_sglang.tools.bench.report import Report, show, write
from specvlm_sglang.tools.bench.servers import (
    batches,
    gpu_memory_bytes,
    launch_arguments,
    peak_memory_bytes,
    servers_that_fit,
)
from specvlm_sglang.tools.bench.stored import Journal
from specvlm_sglang.tools.bench.summary import METRICS, summarise
from specvlm_sglang.tools.bench.template import Template
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
from specvlm_sglang.tools.client import specvlm_state
from specvlm_sglang.tools.errors import ToolError
from specvlm_sglang.tools.launch import on_gpu
from specvlm_sglang.tools.needs import model_needs
from specvlm_sglang.tools.pair import Pair, choose_pair
from specvlm_sglang.tools.server import Server, wait_until_ready

START_SECONDS = 1800.0
LOST = 2
"""Exit status of a run that lost speed beyond noise beside the one of ``--against``."""
# Without its cache of vision features, a server encodes a video anew after every flush.
_ENVIRONMENT = {"SGLANG_VLM_CACHE_SIZE_MB": "0"}


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
    """Run the benchmark. Nothing it started survives it.

    Returns
    -------
    int
        Exit status: 0, or `LOST` where ``--against`` found a loss beyond noise.

    Raises
    ------
    ToolError, ValueError, OSError
        It cannot run; the message is one sentence.
    """
    with tempfile.TemporaryDirectory(prefix="specvlm-bench-") as folder:
        return _run(options, console or Console(), Path(folder))


def _run(options: argparse.Namespace, console: Console, folder: Path) -> int:
    started = time.monotonic()
    _check(options)
    about = environment()
    earlier = against.read(options.against) if options.against else None
    pair = choose_pair(
        options.target,
        options.draft,
        options.parameters,
        console,
        draft_parameters=options.draft_parameters,
        draft_kv_heads=options.draft_kv_heads,
    )
    with console.status("preparing the tokenizer"):
        template = Template(pair.target)
    plan = _plan(options, pair, template, folder)
    console.print(Text(f"{pair.note}. {plan.rule}", style="dim"))
    at_once = options.servers_at_once or servers_that_fit(pair.target)
    settings = _settings(options, pair, plan)
    if earlier is not None:
        against.check_settings(earlier, settings)
    path = options.out / "journal.jsonl" if options.out else None
    together = {**settings, "servers_at_once": at_once, "commit": about["commit"]}
    journal = Journal(path, together, resume=options.resume)
    warm: set[tuple[int, str, int]] = set()
    for batch, names in enumerate(batches(plan.servers, at_once)):
        if batch in journal.batches:
            continue
        with ExitStack() as stack:
            alive = _start(options, pair, plan, names, stack, folder, console)
            for workload in plan.workloads:
                _workload(plan, workload, alive, template, journal, warm, batch, console)
            servers = {}
            for name, server in alive.items():
                processes = server.processes()
                servers[name] = {
                    "arguments": shlex.join(server.arguments),
                    "peak_resident_bytes": peak_memory_bytes(processes),
                    "gpu_bytes": gpu_memory_bytes(processes),
                    "draft_kv_capacity": specvlm_state(server.url).get("draft_kv_tokens"),
                }
            journal.end_batch(batch, servers)
    records, slots = journal.records, journal.slots
    about |= {
        "settings": settings,
        "pair": pair.note,
        "seconds": round(time.monotonic() - started),
        "servers_at_once": at_once,
        "workloads": {workload.name: asdict(workload) for workload in plan.workloads},
        "notes": _notes(options, about, pair, plan, at_once),
    }
    rows = summarise(records)
    report = Report(
        about=about,
        servers=journal.servers,
        records=records,
        rows=rows,
        bars={
            name: bars(rows, records, slots, name)
            for name in ([MAIN] if options.bars == [] else options.bars or ())
        },
        slots=slots,
        slot_bytes=model_needs(pair.draft, options.dtype).kv_bytes_per_token,
        comparison=None if earlier is None else against.compare(records, earlier),
    )
    show(report, console)
    if options.out:
        from specvlm_sglang.tools.bench.plots import draw

        write(report, options.out)
        machine = f"{about['hardware']['cpu']}, {options.dtype}"
        note = f"{machine}; {pair.note}; server's top-p {options.top_p:g}"
        draw(rows, options.out, note)
        console.print(f"written to {options.out}")
    return LOST if report.comparison is not None and report.comparison.lost else 0


def _settings(options: argparse.Namespace, pair: Pair, plan: Plan) -> dict[str, Any]:
    """What decides which numbers come out, besides the machine and the commit."""
    return {
        "pair": pair.note,
        **{name: getattr(options, name) for name in ("dtype", "steps", "tree", "top_p", "launch")},
        "workloads": [asdict(workload) for workload in plan.workloads],
        "configurations": {
            workload: [c.name for c in chosen] for workload, chosen in plan.configurations.items()
        },
    }


def _check(options: argparse.Namespace) -> None:
    if (options.dataset is None) != (options.data is None):
        raise ToolError("--dataset and --data go together")
    if options.dataset is not None and options.target is None:
        raise ToolError(
            "--dataset needs --target and --draft: the shipped pair knows no such video"
        )
    for name, least in (("steps", 1), ("rounds", 1), ("limit", 1), ("servers_at_once", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ToolError(f"--{name.replace('_', '-')} {value} must be at least {least}")
    for name in options.bars or ():
        configuration(name)
    chosen = [configuration(name) for name in options.configurations or [PLAIN]]
    if all(c.server != PLAIN for c in chosen):
        raise ToolError(f"--configurations must contain {PLAIN}: everything is compared with it")
    if any(c.server == NGRAM for c in chosen) and not on_gpu():
        raise ToolError(
            f"--configurations {NGRAM} needs a GPU: SGLang's n-gram worker loads CUDA kernels"
        )
    if options.resume and options.out is None:
        raise ToolError("--resume needs --out, the folder of the run to go on with")
    if not 0 <= options.top_p <= 1:
        raise ToolError(f"--top-p {options.top_p} must lie in [0, 1]")


def _plan(options: argparse.Namespace, pair: Pair, template: Template, folder: Path) -> Plan:
    """What is asked of whom."""
    model_type = read_config(pair.target).model_type
    wanted = [configuration(name) for name in options.configurations or ()]
    if options.dataset is not None:
        return _dataset_plan(options, wanted, model_type)
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
        mm_config=mm_config(model_type),
        rule=(
            f"Clips: the first scenes whose true description has at least {LONG_ANSWER} tokens; "
            "every round asks about other ones"
        ),
    )


def _dataset_plan(
    options: argparse.Namespace, wanted: list[Configuration], model_type: str
) -> Plan:
    from specvlm_sglang.tools.bench.datasets import load
    from specvlm_sglang.tools.bench.workloads import WORKLOADS

    samples = load(options.dataset, options.data, options.limit)
    if not samples:
        raise ToolError(f"--data {options.data} has no sample of {options.dataset}")
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
        mm_config=dataset_mm_config(samples[0].frames, model_type),
        rule=f"Samples: the first {len(samples)} of {name}",
    )


def _start(
    options: argparse.Namespace,
    pair: Pair,
    plan: Plan,
    names: Sequence[str],
    stack: ExitStack,
    folder: Path,
    console: Console,
) -> dict[str, Server]:
    alive = {}
    for name in names:
        arguments = launch_arguments(
            name,
            draft=pair.draft,
            dtype=options.dtype,
            steps=options.steps,
            tree=tuple(options.tree),
            top_p=options.top_p,
            mm_config=plan.mm_config,
            exact_vision=pair.shipped,
            more=shlex.split(options.launch),
        )
        log = folder / f"{name}.log"
        server = Server(pair.target, arguments, log=log, environment=_ENVIRONMENT)
        alive[name] = stack.enter_context(server)
    title = f"starting {', '.join(names)}"
    with console.status(title) as status:
        wait_until_ready(
            list(alive.values()),
            START_SECONDS,
            lambda seconds: status.update(f"{title}: {seconds:.0f} s"),
        )
    return alive


def _workload(
    plan: Plan,
    workload: Workload,
    alive: dict[str, Server],
    template: Template,
    journal: Journal,
    warm: set[tuple[int, str, int]],
    batch: int,
    console: Console,
) -> None:
    chosen = [c for c in plan.configurations[workload.name] if c.server in alive]
    rounds = plan.tasks[workload.name]
    first = rounds[0][0]
    if all(c.server == PLAIN for c in chosen) and len(alive) > 1:
        return
    names = {c.name for c in chosen}
    missing = [
        index
        for index in range(len(rounds))
        if not journal.measured(batch, workload.name, index, names)
    ]
    if not missing:
        return
    for user in chosen:
        # Threads, buffers and caches of the allocator settle per server and size of a video.
        if (batch, user.server, workload.side) not in warm:
            warm.add((batch, user.server, workload.side))
            warm_up(alive[user.server].url, user, first, template.render)
    if workload.concurrency == workload.questions == 1:
        for user in chosen:
            if user.policy is not None:
                found = draft_slots(alive[user.server].url, user, first, template.render)
                if found is not None:
                    journal.add_slots(workload.name, user.name, found)
    for index in missing:
        for user in rotated(chosen, index):
            url = alive[user.server].url
            with console.status(f"{workload.name}, round {index + 1}: {user.name}"):
                record = measure(
                    url, user, workload, rounds[index], template.render, batch=batch, index=index
                )
            journal.add_record(record)
            console.print(Text(_progress(record), style="dim"), soft_wrap=True)


def _progress(record: Record) -> str:
    values = {name: METRICS[name](record) for name in ("first_token_seconds", "accept_length")}
    rate = METRICS["decode_tokens_per_second"](record) or 0.0
    return (
        f"{record.workload} {record.round + 1} {record.configuration}: first token "
        f"{values['first_token_seconds']:.2f} s, {rate:.1f} tokens/s, "
        f"{values['accept_length'] or 0:.2f} per round, {record.seconds:.1f} s in all"
    )


def _notes(
    options: argparse.Namespace, about: dict[str, Any], pair: Pair, plan: Plan, at_once: int
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
        f"Pair: {pair.note}.",
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
