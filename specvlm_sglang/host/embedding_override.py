"""Hand ready-made embeddings to a multimodal model's forward pass.

SGLang's models ignore an ``input_embeds`` argument and read pixels from the batch instead. All of
them fetch their embeddings through one function, which we ask first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

_embeddings: ContextVar[torch.Tensor | None] = ContextVar("specvlm_embeddings", default=None)


def install() -> None:
    """Wrap SGLang's ``prepare_mm_inputs`` in this process; idempotent."""
    contract.require("worker")

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def prepare_mm_inputs(*args: Any, **kwargs: Any) -> Any:
            embeddings = _embeddings.get()
            return original(*args, **kwargs) if embeddings is None else embeddings

        return prepare_mm_inputs

    replace_function("sglang.srt.managers.mm_utils", "prepare_mm_inputs", make)


@contextmanager
def embeddings_for_next_forward(embeddings: torch.Tensor) -> Iterator[None]:
    """Within this context a multimodal forward pass takes ``embeddings`` ``[tokens, hidden]``."""
    token = _embeddings.set(embeddings)
    try:
        yield
    finally:
        _embeddings.reset(token)
