"""SGLang's own Triton kernels on the CPU, in a process of their own.

Triton decides when it decorates a kernel whether to interpret it, so ``TRITON_INTERPRET=1`` must be
set before the first import. Set for the whole test session, every server that the tests start
would inherit it, and a kernel that lacks a twin would run, slowly, instead of failing.
"""

from __future__ import annotations

import atexit
import importlib
import io
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import torch

_SECONDS = 600
# Its guard wants a GPU tensor; the kernels behind it do not care.
_RENORM = "sglang.kernels.ops.sampling.renorm_triton"


def interpreted(kernel: str, *args: Any, grid: tuple[int, ...] | None = None, **kwargs: Any) -> Any:
    """Call SGLang's ``kernel`` (``"module:attribute"``) in Triton's interpreter.

    Tensors among the arguments are written as the kernel writes them. With ``grid`` the attribute
    is a bare kernel and is launched on it. Returns what the function returns.
    """
    payload = _dumps((kernel, args, grid, kwargs))
    answer = _worker().submit(_call, payload).result(timeout=_SECONDS)
    result, new_args, new_kwargs = _loads(answer)
    for old, new in ((args, new_args), (tuple(kwargs.values()), tuple(new_kwargs.values()))):
        for before, after in zip(old, new, strict=True):
            if isinstance(before, torch.Tensor):
                before.copy_(after)
    return result


@cache
def _worker() -> ProcessPoolExecutor:
    worker = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _choose_interpreter)
    atexit.register(worker.shutdown)
    return worker


def _choose_interpreter() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


def _call(payload: bytes) -> bytes:
    kernel, args, grid, kwargs = _loads(payload)
    module_name, _, attribute = kernel.partition(":")
    module = importlib.import_module(module_name)
    if module_name == _RENORM:
        module._prepare_probs = lambda probs: probs.float().contiguous()
    function = getattr(module, attribute)
    result = (function if grid is None else function[grid])(*args, **kwargs)
    return _dumps((result if grid is None else None, args, kwargs))


def _dumps(value: Any) -> bytes:
    # Plain pickle cannot load tensors of unsigned types.
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _loads(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=False)
