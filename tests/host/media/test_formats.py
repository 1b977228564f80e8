"""The decoder reads bytes: no demuxer of the bundled library opens a socket or another file."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from specvlm_sglang.host.media import formats
from specvlm_sglang.host.media.reader import PyAVReader
from tests.host.media.every_demuxer import demuxers
from tests.support import hostile, numbered, syscalls

ROOT = Path(__file__).resolve().parents[3]
needs_seccomp = pytest.mark.skipif(not syscalls.SUPPORTED, reason="counts Linux's system calls")


@pytest.fixture(scope="module")
def listening() -> Iterator[tuple[int, list[socket.socket]]]:
    """A port of 127.0.0.1 where UDP and TCP are listened to, and the sockets."""
    tcp = socket.socket()
    tcp.bind(("127.0.0.1", 0))
    tcp.listen()
    port = tcp.getsockname()[1]
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", port))
    yield port, [tcp, udp]
    tcp.close()
    udp.close()


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A playable file that no payload may reach."""
    return numbered.write(tmp_path_factory.mktemp("canary") / "canary.mp4", "libx264", frames=3)


@pytest.fixture(scope="module")
def payloads(
    tmp_path_factory: pytest.TempPathFactory, canary: Path, listening: tuple[int, object]
) -> Path:
    folder = tmp_path_factory.mktemp("payloads")
    for name, content in hostile.scripts(str(canary), listening[0]).items():
        (folder / name).write_bytes(content)
    (folder / "outside data").write_bytes(
        hostile.write_movie_with_outside_data(folder / "outside data.mp4", str(canary))
    )
    for name in ("a.mkv", "a.avi", "a.ts", "a.flv", "a.mpg"):
        codec = "mpeg2video" if name == "a.mpg" else "libx264"
        numbered.write(folder / name, codec, frames=6)
    noise = np.random.default_rng(0).integers(0, 256, 4096, np.uint8).tobytes()
    (folder / "noise").write_bytes(noise)
    (folder / "nothing").write_bytes(b"")
    return folder


def sweep(payloads: Path, way: str) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.host.media.every_demuxer", str(payloads), way],
        cwd=ROOT,
        # Other arenas than the first ask the kernel how memory may be given back, by a file.
        env={**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, str] = json.loads(done.stdout)
    for name, ended in found.items():
        if ended == "failed":
            found[name] = f"failed: {done.stderr[-500:]}"
    return found


@pytest.fixture(scope="module")
def ended(payloads: Path) -> dict[str, str]:
    return sweep(payloads, "guarded")


@needs_seccomp
@pytest.mark.parametrize("name", ["None", *demuxers()])
def test_no_demuxer_opens_anything_whatever_it_is_handed(name: str, ended: dict[str, str]) -> None:
    assert ended[name] == "done"


@needs_seccomp
def test_without_our_options_the_same_payloads_are_followed(payloads: Path) -> None:
    bare = sweep(payloads, "bare")
    followed = {name for name, how in bare.items() if how == "opened"}
    assert {"None", "concat", "hls", "sdp", "mov,mp4,m4a,3gp,3g2,mj2"} <= followed


def test_nothing_reaches_a_listener_and_scripts_are_refused_at_once(
    payloads: Path, canary: Path, listening: tuple[int, list[socket.socket]]
) -> None:
    port, sockets = listening
    before = canary.stat()
    for name, content in hostile.scripts(str(canary), port).items():
        with pytest.raises(ValueError, match="not a readable video file"):
            PyAVReader(content)
        for demuxer in ("concat", "hls", "sdp", "dash", "rtsp", "image2", "lavfi"):
            if demuxer in demuxers():
                with pytest.raises(ValueError, match="not a readable video file"):
                    PyAVReader(content, format_name=demuxer)
        assert name
    readable, _, _ = select.select(sockets, [], [], 0.2)
    assert not readable
    assert canary.stat() == before


def test_a_file_object_has_no_name_that_a_demuxer_could_follow(tmp_path: Path) -> None:
    path = numbered.write(tmp_path / "a.mp4", "libx264", frames=3)
    with path.open("rb") as file, formats.open_container(file) as container:
        assert container.name == "<none>"


def test_every_format_on_the_list_exists_in_the_bundled_library() -> None:
    known = {part for name in demuxers() for part in name.split(",")}
    assert set(formats.VIDEO_FORMATS) | set(formats.SOUND_FORMATS) <= known


def test_a_nested_open_is_refused_by_python_too() -> None:
    with pytest.raises(PermissionError):
        formats._refuse("http://127.0.0.1/", 1, {})
