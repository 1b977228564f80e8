"""A prefill of parts of other prompts, seen as a batch of SGLang's."""

from __future__ import annotations

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from specvlm_sglang.host.batch_view import prefill_of, rows_of


def test_a_view_extends_its_requests_and_leaves_the_batch_alone() -> None:
    batch = object.__new__(ScheduleBatch)
    batch.reqs = ["a", "b", "c"]
    batch.return_logprob = batch.has_grammar = True
    batch.forward_mode = ForwardMode.DECODE
    before = dict(vars(batch))
    stops = torch.tensor([9, 4])
    view = prefill_of(
        batch,
        ["c", "a"],
        rows=(rows := torch.tensor([7, 2])),
        device_rows=rows.clone(),
        starts=[6, 0],
        stops=stops,
        device_stops=stops.clone(),
        input_ids=torch.arange(7),
        slots=torch.arange(7) + 100,
        mrope_positions=[ids := torch.arange(27).view(3, 9), None],
    )
    assert vars(batch) == before
    assert view.reqs == ["c", "a"]
    assert (view.prefix_lens, view.extend_lens, view.extend_num_tokens) == ([6, 0], [3, 4], 7)
    assert view.seq_lens.tolist() == view.seq_lens_cpu.tolist() == [9, 4]
    assert (view.seq_lens_sum, view.return_logprob, view.has_grammar) == (13, False, False)
    assert view.req_pool_indices_cpu is rows
    assert view.forward_mode is ForwardMode.EXTEND
    assert view.multimodal_inputs[0].mrope_positions is ids
    assert view.multimodal_inputs[1] is None
    assert len(view.extend_logprob_start_lens) == 2


def test_rows_are_those_that_the_batch_was_made_with() -> None:
    """A request that ended since has none any more."""
    batch = object.__new__(ScheduleBatch)
    batch.req_pool_indices_cpu = torch.tensor([4, 2])
    assert rows_of(batch) == [4, 2]
