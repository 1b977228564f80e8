"""The servers, what they are asked, and how long they take."""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import httpx
import torch
from safetensors.torch import load_file, save_file

from specvlm_sglang.tools import demo
from specvlm_sglang.tools.bench.template import Template
from specvlm_sglang.tools.chat import data_url
from specvlm_sglang.tools.client import specvlm_state
from specvlm_sglang.tools.launch import common_arguments, specvlm_arguments
from specvlm_sglang.tools.server import Server, wait_until_ready

PLAIN, ADAPTIVE = "plain", "adaptive"
FIRST_SEED = 7_000_000_000
CLIPS, SIDE, SECONDS = 8, 112, 8
KV_TOKENS = 65_536
SHORT = 16
"""Answers of fewer tokens are asked for in more rounds: most of their time is the video's."""


@dataclass(frozen=True)
class Load:
    """Clients that ask at the same time, one request after another.

    Attributes
    ----------
    at_once
        Clients.
    tokens
        Of every answer.
    each
        Requests of a client.
    """

    at_once: int
    tokens: int
    each: int = 1

    def __str__(self) -> str:
        return f"{self.at_once} at once, {self.tokens} tokens"


class Answers(NamedTuple):
    """Of a load.

    Attributes
    ----------
    seconds
        Until the last one was there.
    latency
        Median seconds of a request.
    ids
        Their tokens, client by client.
    """

    seconds: float
    latency: float
    ids: list[list[int]]


def mixed(loads: Sequence[Load], repeats: int, seed: int) -> list[Load]:
    """A trace: every load ``repeats`` times, in random order."""
    trace = [load for load in loads for _ in range(repeats)]
    random.Random(seed).shuffle(trace)
    return trace


def useless(draft: Path, directory: Path) -> Path:
    """A copy of a draft of which each weight matrix is shuffled: as fast, and right by chance."""
    shutil.copytree(draft, directory)
    generator = torch.Generator().manual_seed(0)
    weights = load_file(directory / "model.safetensors")
    for name, tensor in weights.items():
        if tensor.ndim > 1:
            order = torch.randperm(tensor.numel(), generator=generator)
            weights[name] = tensor.flatten()[order].reshape(tensor.shape).contiguous()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@contextmanager
def servers(
    target: str, draft: Path, fixed: Sequence[int], folder: Path, environment: Mapping[str, str]
) -> Iterator[dict[str, str]]:
    """URLs of a plain server, one for each fixed number of steps, and an adaptive one."""
    common = common_arguments("float32", kv_tokens=KV_TOKENS)
    chains = {f"{steps} steps": specvlm_arguments(draft, steps=steps) for steps in fixed}
    adaptive = (*specvlm_arguments(draft, steps=max(fixed)), "--speculative-adaptive")
    wanted = {PLAIN: (), **chains, ADAPTIVE: adaptive}
    with ExitStack() as stack:
        started = {}
        for name, arguments in wanted.items():
            log = folder / f"{name}.log"
            server = Server(target, (*common, *arguments), log=log, environment=environment)
            started[name] = stack.enter_context(server)
            wait_until_ready((server,))
        yield {name: server.url for name, server in started.items()}


class Clients:
    """Asks about a few clips that every server has in its radix cache.

    Parameters
    ----------
    folder
        Where the clips are written.
    """

    def __init__(self, folder: Path) -> None:
        self.turn = 0
        """Of a load: which clips it asks about."""
        template = Template(str(demo.target_path()))
        self._bodies = []
        for number in range(CLIPS):
            path = folder / f"{number}.mp4"
            scene = demo.make_clip(path, FIRST_SEED + number, seconds=SECONDS, side=SIDE)
            prompt = template.render([(demo.description(scene)[0], None)])
            self._bodies.append({"text": prompt, "video_data": [data_url(path)]})

    def ask(self, url: str, load: Load) -> Answers:
        """What a server answers to a load, and how long it takes."""
        sampling = {"temperature": 0, "max_new_tokens": load.tokens, "ignore_eos": True}

        def one(place: int) -> tuple[float, list[int]]:
            clip = (place + self.turn * load.at_once * load.each) % CLIPS
            body = {**self._bodies[clip], "sampling_params": sampling}
            started = time.perf_counter()
            answer = httpx.post(f"{url}/generate", json=body, timeout=1800)
            answer.raise_for_status()
            return time.perf_counter() - started, answer.json()["output_ids"]

        def client(number: int) -> list[tuple[float, list[int]]]:
            return [one(number * load.each + turn) for turn in range(load.each)]

        with ThreadPoolExecutor(load.at_once) as pool:
            started = time.perf_counter()
            found = [one for answers in pool.map(client, range(load.at_once)) for one in answers]
            seconds = time.perf_counter() - started
        latency = statistics.median(took for took, _ in found)
        return Answers(seconds, latency, [ids for _, ids in found])

    def fill_caches(self, urls: Mapping[str, str]) -> None:
        """Let every server read every clip."""
        for url in urls.values():
            self.ask(url, Load(CLIPS, 8))


def measure(
    clients: Clients, urls: Mapping[str, str], loads: Sequence[Load], rounds: int
) -> Iterator[tuple[Load, int, str, Answers, object]]:
    """Every load on every server in turn, each after one that is not measured.

    Parameters
    ----------
    rounds
        Of each load; short answers have more.

    Yields
    ------
    tuple
        Load, round, server, answers, and what the adaptive server says of its pace.
    """
    for load in loads:
        clients.turn = 0
        _in_turn(clients, urls, load, 0)
        for index in range(rounds * max(1, SHORT // load.tokens)):
            clients.turn = index
            for name, answers in _in_turn(clients, urls, load, index).items():
                pace = specvlm_state(urls[name])["pace"] if name == ADAPTIVE else None
                yield load, index, name, answers, pace


def measure_trace(
    clients: Clients, urls: Mapping[str, str], trace: Sequence[Load]
) -> dict[str, float]:
    """Seconds of a whole trace by server; all servers take each load in turn."""
    total = dict.fromkeys(urls, 0.0)
    for place, load in enumerate(trace):
        clients.turn = place
        for name, answers in _in_turn(clients, urls, load, place).items():
            total[name] += answers.seconds
    return total


def _in_turn(
    clients: Clients, urls: Mapping[str, str], load: Load, first: int
) -> dict[str, Answers]:
    """One load on every server, beginning with another one each time.

    Raises
    ------
    RuntimeError
        A server answered with other tokens than the plain one.
    """
    names = list(urls)
    cut = first % len(names)
    found = {name: clients.ask(urls[name], load) for name in names[cut:] + names[:cut]}
    for name, answers in found.items():
        if answers.ids != found[PLAIN].ids:
            raise RuntimeError(f"{name}, {load}: other tokens than {PLAIN}")
    return found
