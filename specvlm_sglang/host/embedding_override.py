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

Given = tuple[torch.Tensor, torch.Tensor | None]

_given: ContextVar[Given | None] = ContextVar("specvlm_embeddings", default=None)


def install() -> None:
    """Wrap SGLang's ``prepare_mm_inputs`` in this process; idempotent."""
    contract.require("worker")

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def prepare_mm_inputs(
            input_ids: Any,
            forward_batch: Any,
            language_model: Any,
            kwargs: dict[str, Any],
            *args: Any,
            **options: Any,
        ) -> Any:
            given = _given.get()
            if given is None:
                return original(input_ids, forward_batch, language_model, kwargs, *args, **options)
            embeddings, deepstack = given
            if deepstack is not None:
                kwargs["input_deepstack_embeds"] = deepstack
            return embeddings

        return prepare_mm_inputs

    replace_function("sglang.srt.managers.mm_utils", "prepare_mm_inputs", make)


@contextmanager
def embeddings_for_next_forward(
    embeddings: torch.Tensor, deepstack: torch.Tensor | None = None
) -> Iterator[None]:
    """Within this context a multimodal forward pass takes these embeddings.

    Parameters
    ----------
    embeddings
        ``[tokens, hidden]``.
    deepstack
        ``[tokens, layers * hidden]``, which the model adds to the outputs of its first layers.
    """
    token = _given.set((embeddings, deepstack))
    try:
        yield
    finally:
        _given.reset(token)
