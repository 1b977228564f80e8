"""Triton kernels compiled for a GPU that is not there, and what the machine code needs.

A launcher is called with tensors without values while its launches are recorded instead of run, so
that types, specialisations, tile and warps are those which a GPU would get.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

WARP = 32


@dataclass(frozen=True)
class Resources:
    """What one program of a compiled kernel occupies.

    Attributes
    ----------
    registers
        Of each thread.
    spills
        Instructions that move registers to or from local memory.
    stack, shared
        Bytes of local memory of each thread; bytes of shared memory of the program.
    """

    registers: int
    spills: int
    stack: int
    shared: int


@dataclass(frozen=True)
class Launch:
    """One recorded launch of a kernel."""

    kernel: JITFunction[Any]
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the kernel."""
        return str(self.kernel.__name__)

    def source(self, capability: int) -> tuple[ASTSource, dict[str, Any]]:
        """Source and options as ``JITFunction.run`` would make them on ``sm_<capability>``."""
        backend = make_backend(GPUTarget("cuda", capability, WARP))
        kwargs = {"debug": False, **self.kwargs}
        bind = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        bound, specialization, options = bind(*self.args, **kwargs)
        options, signature, constexprs, attrs = self.kernel._pack_args(
            backend, kwargs, bound, specialization, options
        )
        return ASTSource(self.kernel, signature, constexprs, attrs), dict(options.__dict__)

    def compiled(self, capability: int) -> Resources:
        """Compile for ``sm_<capability>`` (80, 90, 100) and read the machine code."""
        source, options = self.source(capability)
        binary = triton.compile(source, target=GPUTarget("cuda", capability, WARP), options=options)
        return _resources(binary.asm["cubin"], binary.metadata.shared)


def launches_of(launcher: Callable[..., Any], *args: Any) -> list[Launch]:
    """Call ``launcher``, whose kernels do nothing, and return their launches in order.

    Raises
    ------
    RuntimeError
        Nothing was launched: Triton interprets (``TRITON_INTERPRET``), so nothing is compiled.
    """
    with _recorded() as launches:
        launcher(*args)
    if not launches:
        raise RuntimeError("no kernel was launched; unset TRITON_INTERPRET")
    return launches


@contextlib.contextmanager
def _recorded() -> Iterator[list[Launch]]:
    launches: list[Launch] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(Launch(kernel, grid, args, kwargs))

    with mock.patch.object(JITFunction, "run", run):
        yield launches


def _resources(cubin: bytes, shared: int) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
        code = _tool(triton.knobs.nvidia.nvdisasm.path, "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
    if found is None or "EXIT" not in code:
        raise RuntimeError(f"cuobjdump and nvdisasm show no kernel: {usage}")
    registers, stack, local = map(int, found.groups())
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    return Resources(registers, spills, stack + local, shared)


def _tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
