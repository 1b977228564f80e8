"""Decode speed of a target that drafts for itself, beside plain decoding, where KV dominates.

    python -m benchmarks.self_draft_speed --out benchmarks/results/self_draft_speed

The shipped target, enlarged without changing what it says, answers several questions at once about
clips of 8,192 video tokens. Both servers live together and answer the same questions in turns.
Every prompt is in the radix cache, so a turn is decoding and little else, and a rate is that of the
time in which all requests decode: from the last one's first token to the first one's end.

On a machine that does other things at the same time, rates swing with it. So each is given a second
time by the processor seconds of the scheduler's process, which ``OMP_NUM_THREADS=1`` makes those of
a core of its own; what waits for memory that others fill still counts.

The share of keys and values in a step's bytes is counted from the model's dimensions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import httpx
import torch
from rich.console import Console

from specvlm_sglang.tools import demo
from specvlm_sglang.tools.bench.environment import environment
from specvlm_sglang.tools.bench.measure import difference, rotated
from specvlm_sglang.tools.bench.template import Template
from specvlm_sglang.tools.bench.workloads import (
    Task,
    Workload,
    clip_tasks,
    long_scenes,
    mm_config,
)
from specvlm_sglang.tools.client import SECONDS, specvlm_state
from specvlm_sglang.tools.demo import enlarge
from specvlm_sglang.tools.launch import common_arguments, specvlm_arguments
from specvlm_sglang.tools.server import Server, wait_until_ready
from specvlm_sglang.tools.sizing.checkpoint import dimensions_of
from specvlm_sglang.tools.sizing.cost import verify
from specvlm_sglang.tools.sizing.dimensions import ModelDimensions

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SIDES = {2048: 224, 8192: 448, 16928: 644}
"""Edges of a clip's frames by its video tokens."""
PLAIN = "plain"


@dataclass(frozen=True)
class Streamed:
    """One answer: when it had how many tokens, and which.

    Attributes
    ----------
    pieces
        Seconds of the host's clock and tokens so far, piece by piece.
    ids
        Its tokens.
    rounds
        Verify rounds; 0 for plain decoding.
    prompt_tokens, cached_tokens
        Of the prompt, and of these how many the radix cache had.
    cold
        Why it had no draft, or None.
    """

    pieces: tuple[tuple[float, int], ...]
    ids: tuple[int, ...]
    rounds: int
    prompt_tokens: int
    cached_tokens: int
    cold: str | None = None


def stream(url: str, prompt: str, task: Task, max_tokens: int, fields: dict[str, Any]) -> Streamed:
    """Ask greedily and note when each piece came."""
    sampling = {"temperature": 0, "max_new_tokens": max_tokens, **fields}
    body = {"text": prompt, "video_data": [task.video], "sampling_params": sampling, "stream": True}
    pieces, piece = [], {}
    with httpx.stream("POST", f"{url}/generate", json=body, timeout=SECONDS) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data:") and line != "data: [DONE]":
                piece = json.loads(line[5:])
                pieces.append((time.perf_counter(), piece["meta_info"]["completion_tokens"]))
    meta = piece["meta_info"]
    return Streamed(
        pieces=tuple(pieces),
        ids=tuple(piece["output_ids"]),
        rounds=meta.get("spec_verify_ct", 0),
        prompt_tokens=meta["prompt_tokens"],
        cached_tokens=meta.get("cached_tokens") or 0,
        cold=(meta.get("specvlm") or {}).get("cold"),
    )


def rate(answers: Sequence[Streamed]) -> float:
    """Tokens per second of all together, while all of them decode.

    Raises
    ------
    ValueError
        They never decode all at once.
    """
    start, end = window(answers)
    if end <= start:
        raise ValueError("one answer ended before the last began: they must be longer")

    def tokens(answer: Streamed, until: float) -> int:
        return max((count for when, count in answer.pieces if when <= until), default=0)

    return sum(tokens(one, end) - tokens(one, start) for one in answers) / (end - start)


def window(answers: Sequence[Streamed]) -> tuple[float, float]:
    """When all of them decode, by the host's clock."""
    return max(one.pieces[0][0] for one in answers), min(one.pieces[-1][0] for one in answers)


class ProcessorClock:
    """Processor seconds of a server's scheduler over time, sampled in a thread.

    Parameters
    ----------
    server
        One that answers, with one scheduler.
    """

    def __init__(self, server: Server) -> None:
        names = ((process, process.name()) for process in server.processes())
        (self._process,) = (process for process, name in names if "schedul" in name)
        self._samples: list[tuple[float, float]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.is_set():
            times = self._process.cpu_times()
            self._samples.append((time.perf_counter(), times.user + times.system))
            self._done.wait(0.02)

    def between(self, start: float, end: float) -> float:
        """Processor seconds from ``start`` to ``end``, by the nearest samples."""
        at = [min(self._samples, key=lambda one: abs(one[0] - when))[1] for when in (start, end)]
        return at[1] - at[0]


def accept_length(answers: Sequence[Streamed]) -> float | None:
    """Tokens per verify round, bonus included; None for plain decoding."""
    rounds = sum(answer.rounds for answer in answers)
    # The first token of an answer comes from its prefill.
    return sum(len(answer.ids) - 1 for answer in answers) / rounds if rounds else None


def kv_share(model: ModelDimensions, context: int, batch: int) -> float:
    """Share of keys and values in the bytes of a plain decode step, counted."""
    step = verify(model, 1, context, batch)
    return batch * (context + 2) * model.kv_bytes_per_token / step.bytes


def in_turns(
    servers: dict[str, Server],
    settings: dict[str, dict[str, Any]],
    tasks: Sequence[Task],
    template: Template,
    rounds: int,
    max_tokens: int,
    console: Console,
) -> list[dict[str, Any]]:
    """Records of every setting's turns; those of a round have its number.

    Parameters
    ----------
    settings
        Sampling fields by the name of a setting: `PLAIN`, or one of the server that drafts.
    """
    prompts = [template.render([(task.questions[-1], None)]) for task in tasks]

    def server(name: str) -> Server:
        return servers[PLAIN if name == PLAIN else "self"]

    def turn(name: str, at_most: int) -> list[Streamed]:
        url = server(name).url
        with ThreadPoolExecutor(len(tasks)) as pool:
            return list(
                pool.map(
                    lambda both: stream(url, *both, at_most, settings[name]),
                    zip(prompts, tasks, strict=True),
                )
            )

    records = []
    for name in settings:
        # Fills the radix cache, and settles threads and buffers.
        turn(name, 8)
    for index in range(rounds):
        for name in rotated(list(settings), index):
            url = server(name).url
            before = specvlm_state(url).get("phases", {})
            with ProcessorClock(server(name)) as clock:
                answers = turn(name, max_tokens)
            start, end = window(answers)
            phases = difference(before, specvlm_state(url).get("phases", {}))
            records.append(
                {
                    "round": index,
                    "setting": name,
                    "tokens_per_second": rate(answers),
                    "tokens_per_processor_second": rate(answers)
                    * (end - start)
                    / clock.between(start, end),
                    "accept_length": accept_length(answers),
                    "tokens": sum(len(answer.ids) for answer in answers),
                    "cached_tokens": min(answer.cached_tokens for answer in answers),
                    "prompt_tokens": max(answer.prompt_tokens for answer in answers),
                    "cold": [answer.cold for answer in answers if answer.cold],
                    "ids": [answer.ids for answer in answers],
                    "phases": phases,
                }
            )
            shown = records[-1]
            console.print(
                f"round {index + 1} {name}: {shown['tokens_per_second']:.2f} tokens/s, "
                f"{shown['tokens_per_processor_second']:.2f} a processor second, "
                f"{shown['accept_length'] or 1:.2f} a round",
                markup=False,
            )
    return records


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a setting: medians, and the ratio to plain decoding's turn of the same round."""
    plain = {record["round"]: record for record in records if record["setting"] == PLAIN}
    lines = []
    for name in dict.fromkeys(record["setting"] for record in records):
        mine = [record for record in records if record["setting"] == name]
        ratios = [
            one["tokens_per_second"] / plain[one["round"]]["tokens_per_second"] for one in mine
        ]
        by_processor = [
            one["tokens_per_processor_second"] / plain[one["round"]]["tokens_per_processor_second"]
            for one in mine
        ]
        lengths = [one["accept_length"] for one in mine if one["accept_length"] is not None]
        lines.append(
            {
                "setting": name,
                "tokens_per_second": statistics.median(one["tokens_per_second"] for one in mine),
                "accept_length": statistics.median(lengths) if lengths else None,
                "over_plain": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
                "over_plain_by_processor": statistics.median(by_processor),
                "lowest_by_processor": min(by_processor),
                "highest_by_processor": max(by_processor),
                "answers_unlike_plain": sum(
                    a != b
                    for one in mine
                    for a, b in zip(one["ids"], plain[one["round"]]["ids"], strict=True)
                ),
                "phase_seconds": {
                    phase: round(sum(one["phases"][phase]["seconds"] for one in mine), 3)
                    for phase in mine[0]["phases"]
                },
                "phase_calls": {
                    phase: sum(one["phases"][phase]["calls"] for one in mine)
                    for phase in mine[0]["phases"]
                },
            }
        )
    return lines


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The summary as Markdown."""
    rows = [
        "| setting | tokens/s | accept length | over plain | by processor time "
        "| answers unlike plain's |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        length = "" if line["accept_length"] is None else f"{line['accept_length']:.2f}"
        ratio = f"{line['over_plain']:.2f} [{line['lowest']:.2f}, {line['highest']:.2f}]"
        rows.append(
            f"| {line['setting']} | {line['tokens_per_second']:.2f} | {length} | {ratio} "
            f"| {line['over_plain_by_processor']:.2f} [{line['lowest_by_processor']:.2f}, "
            f"{line['highest_by_processor']:.2f}] | {line['answers_unlike_plain']} |"
        )
    return "\n".join(rows)


def arguments_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.self_draft_speed",
        description=str(__doc__).partition("\n")[0],
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for results.json")
    add("--parameters", type=enlarge.parse_count, default=270_000_000, help="such as 270M")
    add("--layers", type=int, default=enlarge.LAYERS, help="of the enlarged target, at most")
    add("--kv-heads", type=int, default=4, help="of a layer: 1, 2 or 4")
    add("--dtype", choices=DTYPES, default="bfloat16")
    add("--video-tokens", type=int, choices=SIDES, default=8192, help="of each request")
    add("--requests", type=int, default=4, help="at once")
    add("--retention", type=float, nargs="+", default=[0.1])
    add("--policy", default="specvlm")
    add("--steps", type=int, default=3, help="draft tokens of a round")
    add("--tokens", type=int, default=96, help="of an answer at most; the clips' have 128 or more")
    add("--rounds", type=int, default=3, help="turns of each setting")
    add("--adaptive", action="store_true", help="the server chooses how many it drafts")
    return parser.parse_args(arguments)


def enlarged(chosen: argparse.Namespace, folder: Path) -> Path:
    """The target of this measurement, written into ``folder``."""
    out = folder / "target"
    enlarge.write(
        demo.target_path(),
        out,
        chosen.parameters,
        DTYPES[chosen.dtype],
        layers=chosen.layers,
        kv_heads=chosen.kv_heads,
    )
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``results.json`` and print the table."""
    chosen = arguments_of(arguments)
    console = Console()
    workload = Workload(
        "speed",
        "decoding",
        SIDES[chosen.video_tokens],
        (PLAIN,),
        rounds=1,
        max_tokens=chosen.tokens,
        concurrency=chosen.requests,
    )
    settings: dict[str, dict[str, Any]] = {PLAIN: {}}
    for retention in chosen.retention:
        asked = {"policy": chosen.policy, "retention": retention}
        settings[f"{chosen.policy}-{retention:g}-self"] = {"custom_params": {"specvlm": asked}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = enlarged(chosen, folder)
        template = Template(str(target))
        tasks = clip_tasks(workload, long_scenes(template.count), folder)[0]
        pool = chosen.requests * (chosen.video_tokens + 512 + chosen.tokens)
        common = common_arguments(
            chosen.dtype, exact_vision=True, kv_tokens=pool, mm_config=mm_config("qwen2_5_vl")
        )
        more = ("--speculative-adaptive",) if chosen.adaptive else ()
        drafting = (*specvlm_arguments(None, steps=chosen.steps), *more)
        servers = {
            PLAIN: Server(target, common, log=folder / "plain.log"),
            "self": Server(target, (*common, *drafting), log=folder / "self.log"),
        }
        with servers[PLAIN], servers["self"]:
            wait_until_ready(list(servers.values()))
            records = in_turns(
                servers, settings, tasks, template, chosen.rounds, chosen.tokens, console
            )
            pace = specvlm_state(servers["self"].url)["pace"]
        model = dimensions_of(str(target))
    size = 4.0 if chosen.dtype == "float32" else 2.0
    model = replace(model, bytes_per_parameter=size, bytes_per_kv_element=size)
    prompt = max(record["prompt_tokens"] for record in records)
    share = kv_share(model, prompt + chosen.tokens // 2, chosen.requests)
    lines = summary(records)
    about = environment()
    about["command"] = " ".join(["python -m benchmarks.self_draft_speed", *sys.argv[1:]])
    record = {
        "kind": "decode speed, measured in turns beside plain decoding; the KV share is counted",
        **about,
        "dtype": chosen.dtype,
        "steps": chosen.steps,
        "adaptive": chosen.adaptive,
        "requests": chosen.requests,
        "prompt_tokens": prompt,
        "kv_bytes_per_token": model.kv_bytes_per_token,
        "parameters": model.parameters,
        "kv_share_of_a_step": round(share, 3),
        "pace": pace,
        "settings": lines,
        "turns": [{k: v for k, v in one.items() if k not in ("ids", "phases")} for one in records],
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"keys and values are {share:.0%} of a plain step's bytes, counted")
    console.print(table(lines), markup=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
