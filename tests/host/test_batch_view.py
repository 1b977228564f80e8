"""A prefill of parts of other prompts, seen as a batch of SGLang's."""

from __future__ import annotations

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch

from specvlm_sglang.host.batch_view import prefill_of


def test_a_view_extends_its_requests_and_leaves_the_batch_alone() -> None:
    batch = object.__new__(ScheduleBatch)
    batch.reqs = ["a", "b", "c"]
    batch.return_logprob = batch.has_grammar = True
    before = dict(vars(batch))
    stops = torch.tensor([9, 4])
    view = prefill_of(
        batch,
        ["c", "a"],
        rows=torch.tensor([7, 2]),
        starts=[6, 0],
        stops=stops,
        device_stops=stops.clone(),
        input_ids=torch.arange(7),
        slots=torch.arange(7) + 100,
    )
    assert vars(batch) == before
    assert view.reqs == ["c", "a"]
    assert (view.prefix_lens, view.extend_lens, view.extend_num_tokens) == ([6, 0], [3, 4], 7)
    assert view.seq_lens.tolist() == view.seq_lens_cpu.tolist() == [9, 4]
    assert (view.seq_lens_sum, view.return_logprob, view.has_grammar) == (13, False, False)
    assert len(view.multimodal_inputs) == len(view.extend_logprob_start_lens) == 2
