"""When the CPU platform is wanted, and what a process needs before SGLang looks at devices."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Any

import torch


@cache
def is_wanted() -> bool:
    """Whether no accelerator is there and nobody asked for SGLang's own CPU engine."""
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1":
        return False
    return not (
        torch.cuda.is_available()  # also ROCm
        or torch.xpu.is_available()
        or torch.backends.mps.is_available()
        or (hasattr(torch, "npu") and torch.npu.is_available())
        or (hasattr(torch, "musa") and torch.musa.is_available())
    )


def prepare_process() -> None:
    """Make a process fit for SGLang without a GPU; idempotent.

    - Dynamo is off unless the user set ``TORCHDYNAMO_DISABLE``: SGLang decorates a handful of
      small functions with ``torch.compile``, and the first request that reaches them would wait
      some 25 s for a compiler that a machine may not even have. Set in the environment so that
      child processes inherit it before they import torch.
    - ``Tensor.pin_memory`` returns the tensor itself. Page-locking serves copies to an
      accelerator; without a driver torch raises, and SGLang's video path calls it unguarded.
    """
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    dynamo_config = sys.modules.get("torch._dynamo.config")
    if dynamo_config is not None and os.environ["TORCHDYNAMO_DISABLE"] == "1":
        # Already imported, so it has read the environment; importing it here would cost seconds.
        dynamo_config.disable = True  # type: ignore[attr-defined]
    if torch.Tensor.pin_memory is not _stay_pageable:
        torch.Tensor.pin_memory = _stay_pageable  # type: ignore[method-assign,assignment]


def _stay_pageable(self: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return self
