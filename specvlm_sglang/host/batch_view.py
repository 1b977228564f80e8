"""SGLang's batch: its rows, and how a prefill of parts of other prompts sees it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.speculative.eagle_info import EagleDraftExtendInput


def rows_of(batch: Any) -> list[int]:
    """Return the rows of a ``ScheduleBatch``'s requests in the request table, ``req_pool_idx``.

    A request that ended since the batch was made has given its row back and knows it no more.
    """
    rows: list[int] = batch.req_pool_indices_cpu.tolist()
    return rows


def prefill_of(
    batch: Any,
    reqs: Sequence[Any],
    *,
    rows: torch.Tensor,
    device_rows: torch.Tensor,
    starts: list[int],
    stops: torch.Tensor,
    device_stops: torch.Tensor,
    input_ids: torch.Tensor,
    slots: torch.Tensor,
    mrope_positions: Sequence[torch.Tensor | None],
) -> Any:
    """Return a copy of a ``ScheduleBatch``, of any mode, that extends some of its requests.

    Nothing is sampled, and no log probability and no grammar is asked for.

    Parameters
    ----------
    batch
        SGLang's ``ScheduleBatch``; it is not changed.
    reqs
        Those of its requests that are extended, R of them.
    rows, device_rows
        int64 ``[R]`` on the host and ``[R]`` on the device: their rows of the request table.
    starts, stops
        Where each request's part begins and ends: R integers, and int64 ``[R]`` on the host.
    device_stops
        ``stops`` on the device.
    input_ids, slots
        ``[tokens]`` on the device: all parts' tokens one after another, and where their keys and
        values go.
    mrope_positions
        Of each request's whole prompt, int64 ``[3, tokens]`` on the device; None where it has
        none. SGLang cuts the part out of them.
    """
    view = copy.copy(batch)
    ends = stops.tolist()
    view.forward_mode = ForwardMode.EXTEND
    view.reqs = list(reqs)
    view.req_pool_indices_cpu = rows
    view.req_pool_indices = device_rows
    view.seq_lens_cpu = stops
    view.seq_lens = device_stops
    view.orig_seq_lens = device_stops.to(torch.int32)
    view.seq_lens_sum = sum(ends)
    view.prefix_lens = starts
    view.extend_lens = [stop - start for start, stop in zip(starts, ends, strict=True)]
    view.extend_num_tokens = sum(view.extend_lens)
    view.extend_logprob_start_lens = [0] * len(ends)
    view.extend_input_logprob_token_ids = None
    view.return_logprob = False
    view.has_grammar = False
    view.decoding_reqs = None
    view.multimodal_inputs = [
        None if ids is None else SimpleNamespace(mrope_positions=ids, token_modalities=None)
        for ids in mrope_positions
    ]
    view.input_ids = input_ids
    view.out_cache_loc = slots
    view.spec_info = EagleDraftExtendInput(
        hidden_states=None, num_tokens_per_req=1, num_tokens_for_logprob_per_req=1
    )
    return view
