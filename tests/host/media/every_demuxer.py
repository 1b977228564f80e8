"""Hand every payload of a folder to every demuxer, each in a process that may open nothing.

``python -m tests.host.media.every_demuxer FOLDER guarded|bare`` prints a JSON object: how each
demuxer ended. ``guarded`` goes through our reader, ``bare`` through PyAV without options.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import av
from av.format import ContainerFormat

from specvlm_sglang.host.media.reader import PyAVReader
from tests.support import syscalls


def demuxers() -> list[str]:
    """FFmpeg's names of everything that opens input in the bundled library."""
    found = set()
    for name in av.formats_available:
        try:
            found.add(ContainerFormat(name, "r").name)
        except ValueError:
            continue
    return sorted(found)


def guarded(payloads: list[bytes], name: str | None) -> None:
    """Read frames as a request would; each refusal must be a ValueError."""
    for payload in payloads:
        try:
            reader = PyAVReader(payload, format_name=name)
            reader.get_batch([0, len(reader) - 1])
        except ValueError as error:
            if len(str(error)) > 300:
                raise AssertionError(f"a long error: {error}") from error


def bare(payloads: list[bytes], name: str | None) -> None:
    """Open without any of our options."""
    for payload in payloads:
        try:
            with av.open(io.BytesIO(payload), format=name, options={"enable_drefs": "1"}) as file:
                for packet in file.demux():
                    packet.decode()
        except (av.error.FFmpegError, ValueError, IndexError, AssertionError):
            continue


def main(folder: str, way: str) -> None:
    act: Callable[[list[bytes], str | None], None] = {"guarded": guarded, "bare": bare}[way]
    payloads = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    # What is loaded late is loaded now: it would count as opening.
    guarded(payloads, None)
    ended = {
        str(name): syscalls.run_without_opening(lambda name=name: act(payloads, name))
        for name in (None, *demuxers())
    }
    print(json.dumps(ended))


if __name__ == "__main__":
    main(*sys.argv[1:])
