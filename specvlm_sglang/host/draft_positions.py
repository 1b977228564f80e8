"""Positions of a draft that counts the tokens it never saw.

SGLang derives the positions of drafted tokens from lengths, and the draft's lengths are those of
its pruned prompt. Every batch of drafted tokens is made by one function, which we correct.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

_shift: ContextVar[torch.Tensor | None] = ContextVar("specvlm_position_shift", default=None)


def install() -> None:
    """Wrap ``ForwardBatch.init_new`` in this process; idempotent."""
    contract.require("worker")

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def init_new(cls: Any, *args: Any, **kwargs: Any) -> Any:
            forward_batch = original(cls, *args, **kwargs)
            shift = _shift.get()
            if shift is not None and forward_batch.positions.numel():
                each = forward_batch.positions.numel() // shift.numel()
                forward_batch.positions = forward_batch.positions + shift.repeat_interleave(each)
            return forward_batch

        return init_new

    replace_function("sglang.srt.model_executor.forward_batch_info", "ForwardBatch.init_new", make)


@contextmanager
def shifted(by: torch.Tensor) -> Iterator[None]:
    """Within this context batches of drafted tokens are numbered later.

    Parameters
    ----------
    by
        int64 ``[requests]``; every request has equally many tokens in such a batch.
    """
    token = _shift.set(by)
    try:
        yield
    finally:
        _shift.reset(token)
