"""What a GPU machine is asked to run, and whether it can; known before SGLang is imported."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SGLANG = "0.5.23"
NEEDED = ("sglang", "torch", "transformers", "pytest", "hypothesis")
"""Distributions that the tests import. Those of no fixed version are what SGLang brings."""
SHOWN = (*NEEDED, "triton", "flashinfer-python", "sglang-kernel")
ENTRY_POINT = ("sglang.srt.plugins", "specvlm")


@dataclass(frozen=True)
class ServerCase:
    """A SPECVLM server that answers beside a plain one.

    Attributes
    ----------
    name
        Of the test.
    arguments
        Its command line's, beside the pair.
    devices, capability
        GPUs that it takes, and the least compute capability (major) of them.
    """

    name: str
    arguments: tuple[str, ...]
    devices: int = 1
    capability: int = 8


CHAIN = ("--speculative-num-steps", "5")
TREE = (
    *("--speculative-num-steps", "4", "--speculative-eagle-topk", "4"),
    *("--speculative-num-draft-tokens", "16"),
)
SERVERS = (
    ServerCase("defaults", CHAIN),
    ServerCase("tree", TREE),
    ServerCase("no graphs", (*CHAIN, "--attention-backend", "flashinfer", "--disable-cuda-graph")),
    ServerCase("no overlap", (*CHAIN, "--disable-overlap-schedule")),
    ServerCase("triton", (*CHAIN, "--attention-backend", "triton")),
    ServerCase("fa3", (*CHAIN, "--attention-backend", "fa3"), capability=9),
    ServerCase("two ranks", (*CHAIN, "--tp-size", "2"), devices=2),
)


@dataclass(frozen=True)
class Devices:
    """CUDA devices of this machine.

    Attributes
    ----------
    count
        How many PyTorch sees.
    capability
        Compute capability of the first, (0, 0) without one.
    names
        Name and memory of each.
    """

    count: int = 0
    capability: tuple[int, int] = (0, 0)
    names: tuple[str, ...] = ()


def devices() -> Devices:
    """Ask PyTorch for the CUDA devices; none where it is missing or was built without CUDA."""
    try:
        import torch
    except ImportError:
        return Devices()
    if not torch.cuda.is_available():
        return Devices()
    count = torch.cuda.device_count()
    found = [torch.cuda.get_device_properties(index) for index in range(count)]
    names = tuple(f"{one.name}, {one.total_memory / 2**30:.0f} GB" for one in found)
    return Devices(count, torch.cuda.get_device_capability(0), names)


def versions() -> dict[str, str | None]:
    """Versions of what is installed, None for what is not; read from files, nothing imported."""
    found: dict[str, str | None] = {}
    for name in SHOWN:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def missing(found: dict[str, str | None], gpus: Devices, root: Path) -> list[str]:
    """What has to be mended before anything can run, each with the command that mends it.

    Parameters
    ----------
    found
        Of `versions`.
    gpus
        Of `devices`.
    root
        The checkout.
    """
    python = sys.executable
    troubles = []
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        troubles.append(f"Python {platform.python_version()}: 3.11, 3.12 or 3.13 is needed")
    absent = [name for name in NEEDED if found.get(name) is None]
    if "sglang" in absent:
        troubles.append(f"SGLang is not installed: {python} -m pip install sglang=={SGLANG}")
    elif found["sglang"] != SGLANG:
        troubles.append(
            f"SGLang {found['sglang']}: the plugin relies on {SGLANG}; "
            f"{python} -m pip install sglang=={SGLANG}"
        )
    others = [name for name in absent if name != "sglang"]
    if others:
        troubles.append(f"not installed: {python} -m pip install {' '.join(others)}")
    group, name = ENTRY_POINT
    if not any(entry.name == name for entry in importlib.metadata.entry_points(group=group)):
        troubles.append(f"the plugin is not installed: {python} -m pip install --no-deps -e {root}")
    if gpus.count == 0:
        troubles.append(
            "no CUDA device that PyTorch can use (nvidia-smi shows what the driver sees)"
        )
    return troubles


def remarks(gpus: Devices) -> list[str]:
    """What will be slower or left out, and why."""
    said = []
    if shutil.which("nvcc") is None and not os.path.isdir("/usr/local/cuda"):
        said.append(
            "no nvcc: FlashInfer compiles what its wheels lack; servers that need that fail"
        )
    for case in SERVERS:
        if gpus.count < case.devices:
            said.append(f"left out: {case.name} (needs {case.devices} GPUs, found {gpus.count})")
        elif gpus.capability[0] < case.capability:
            major, minor = gpus.capability
            said.append(
                f"left out: {case.name} (needs capability {case.capability}.0, "
                f"found {major}.{minor})"
            )
    return said


def announcement(
    found: dict[str, str | None], gpus: Devices, troubles: list[str], *, bench: bool
) -> Iterator[str]:
    """Lines that say what is here, what will run and what is missing."""
    yield f"Python {platform.python_version()} ({sys.executable})"
    yield ", ".join(f"{name} {version or 'not installed'}" for name, version in found.items())
    for name in gpus.names:
        yield f"GPU: {name}, compute capability {gpus.capability[0]}.{gpus.capability[1]}"
    if troubles:
        yield "Nothing can run here yet:"
        yield from (f"  - {trouble}" for trouble in troubles)
        return
    runs = [
        case.name
        for case in SERVERS
        if gpus.count >= case.devices and gpus.capability[0] >= case.capability
    ]
    yield "Will run: scores and selection against the reference, the draft's logits,"
    yield f"  {len(runs)} SPECVLM servers beside a plain one ({', '.join(runs)}),"
    yield f"  {'a short benchmark' if bench else 'no benchmark (--no-bench)'}"
    yield from (f"  - {remark}" for remark in remarks(gpus))


def look(root: Path) -> tuple[dict[str, str | None], Devices, list[str]]:
    """Versions, devices and troubles of this machine."""
    found, gpus = versions(), devices()
    return found, gpus, missing(found, gpus, root)
