"""Positions of a draft that counts the tokens it never saw.

SGLang derives the positions of drafted tokens from lengths, and the draft's lengths are those of
its pruned prompt. The attention backends of a GPU read a drafting batch's ``positions`` as lengths
of its KV cache, so only what the model itself is given may be corrected.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from specvlm_sglang.host import contract


def number_drafted_tokens_as(model: Any, missing: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Number what ``model`` drafts later than its KV cache is long.

    Prompts come with positions of their own and are left alone.

    Parameters
    ----------
    model
        The draft's model. SGLang calls ``model.forward(input_ids, positions, forward_batch)``,
        eagerly and in CUDA graphs.
    missing
        From ``req_pool_indices`` ``[requests]`` to the positions that each request's cache lacks,
        int64 ``[requests]``; reads tensors that live as long as the model, since graphs record it.
        Every request has equally many tokens in a batch.
    """
    contract.require("worker")
    forward = model.forward

    @functools.wraps(forward)
    def forward_later(
        input_ids: torch.Tensor, positions: torch.Tensor, forward_batch: Any, **options: Any
    ) -> Any:
        mode = forward_batch.forward_mode
        if (mode.is_decode() or mode.is_draft_extend_v2()) and positions.numel():
            rows = forward_batch.req_pool_indices
            shift = missing(rows).repeat_interleave(positions.numel() // rows.numel())
            positions = positions + shift
        return forward(input_ids, positions, forward_batch, **options)

    model.forward = forward_later


@contextmanager
def numbered_as(model: Any, missing: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """The same within this context alone: ``model`` does other things than drafting too."""
    held = vars(model).get("forward")
    number_drafted_tokens_as(model, missing)
    try:
        yield
    finally:
        if held is None:
            del model.forward
        else:
            model.forward = held
