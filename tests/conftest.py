"""Checkpoints, clips and servers that all tests of a session share."""

from __future__ import annotations

import os
import signal
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from specvlm_sglang.tools.errors import ToolError
from tests.support import checkpoints, clips, workers
from tests.support.server import Server

SERVERS_ALIVE = 2
"""Servers kept at once: each holds several processes and its own copy of torch."""

# A busy machine is slow, not wrong.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

Key = tuple[str, tuple[str, ...], tuple[tuple[str, str], ...]]


class ServerPool:
    """Servers by launch arguments; the least recently used one makes room.

    A server that did not start is not tried again: its error is raised anew.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._alive: OrderedDict[Key, Server] = OrderedDict()
        self._failed: dict[Key, ToolError] = {}
        self._started = 0

    def __call__(self, model: Path, *args: str, **env: str) -> Server:
        """A running server for these arguments and environment variables.

        It may be stopped when two servers with other arguments have been asked for since.
        """
        key: Key = (str(model), args, tuple(sorted(env.items())))
        if key in self._failed:
            raise self._failed[key]
        if key in self._alive:
            self._alive.move_to_end(key)
            return self._alive[key]
        while len(self._alive) >= SERVERS_ALIVE:
            self._alive.popitem(last=False)[1].stop()
        self._started += 1
        server = Server(model, *args, log=self._logs / f"server-{self._started}.log", env=env)
        try:
            server.start()
        except ToolError as error:
            self._failed[key] = error
            raise
        self._alive[key] = server
        return server

    def stop(self) -> None:
        """Stop all; the first error is raised after the last server was dealt with."""
        errors = []
        while self._alive:
            try:
                self._alive.popitem()[1].stop()
            except ToolError as error:
                errors.append(error)
        if errors:
            raise errors[0]


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPool]:
    """Factory of shared servers: ``serve(model, *args, **env)``."""
    pool = ServerPool(tmp_path_factory.mktemp("servers"))
    try:
        yield pool
    finally:
        pool.stop()


@pytest.fixture(scope="session")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory for checkpoints of this session."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def vl_target(checkpoint_dir: Path) -> Path:
    """A tiny float32 Qwen2.5-VL."""
    return checkpoints.qwen2_5_vl(checkpoint_dir / "vl-target")


@pytest.fixture(scope="session")
def vl_draft(checkpoint_dir: Path) -> Path:
    """A narrower Qwen2.5-VL that agrees with `vl_target` on about half of its tokens.

    Its vocabulary is padded, as those of the larger published models are: it must not draft
    tokens that the target does not have.
    """
    shape = replace(checkpoints.DRAFT, vocab_padding=50)
    return checkpoints.qwen2_5_vl(
        checkpoint_dir / "vl-draft", shape, checkpoints.DRAFT_VISION, seed=1
    )


@pytest.fixture(scope="session")
def text_target(checkpoint_dir: Path) -> Path:
    """A tiny float32 Qwen2 text model."""
    return checkpoints.qwen2_text(checkpoint_dir / "text-target")


@pytest.fixture(scope="session")
def text_draft(checkpoint_dir: Path) -> Path:
    """A narrower Qwen2 that agrees with `text_target` on about half of its tokens."""
    return checkpoints.qwen2_text(checkpoint_dir / "text-draft", checkpoints.DRAFT, seed=1)


@pytest.fixture(scope="session")
def clip_paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four clips of two seconds that differ in colours and movement."""
    folder = tmp_path_factory.mktemp("clips")
    return [clips.write_clip(folder / f"clip-{seed}.mp4", seed=seed) for seed in range(4)]


@pytest.fixture(scope="session")
def image_paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four pictures."""
    folder = tmp_path_factory.mktemp("images")
    return [clips.write_image(folder / f"image-{seed}.png", seed=seed) for seed in range(4)]


def pytest_configure() -> None:
    """Interrupted or terminated, end by the fixtures' clean-up, so that servers are stopped.

    Shells start background programs with SIGINT ignored.
    """
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.default_int_handler)
    workers.share_cores_with_torch(os.environ)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> workers.Groups:
    """Keep tests together that share servers."""
    return workers.Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal the tests to workers; skip those marked `gpu` where there is no CUDA device."""
    workers.deal(items)
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if not wanted:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in wanted:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch finds none"))
