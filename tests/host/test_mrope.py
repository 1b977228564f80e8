"""M-RoPE deltas that lie on the device, shown to passes over generated tokens."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch

from specvlm_sglang.host.mrope import MRopeDeltas


def test_positions_are_those_that_sglang_numbers_with_its_own_deltas() -> None:
    deltas = MRopeDeltas(6, "cpu")
    deltas.set(4, -9)
    deltas.set(2, 0)
    held = [SimpleNamespace(mrope_position_delta=torch.tensor([[-9]])), None]
    batch = SimpleNamespace(
        req_pool_indices_cpu=torch.tensor([4, 2]),
        multimodal_inputs=held,
        spec_info=SimpleNamespace(positions=torch.tensor([20, 21, 7, 8])),
    )
    runner = SimpleNamespace(device="cpu")

    def positions() -> torch.Tensor:
        passed = object.__new__(ForwardBatch)
        passed.seq_lens = torch.tensor([20, 7])
        passed.compute_spec_mrope_positions(runner, batch)
        return passed.mrope_positions

    expected = positions()
    with deltas.shown_in(batch):
        assert all(one is not None for one in batch.multimodal_inputs)
        assert torch.equal(positions(), expected)
    assert batch.multimodal_inputs is held
    assert expected[0].tolist() == [11, 12, 7, 8]


def test_a_batch_of_text_is_left_as_it_is() -> None:
    batch = SimpleNamespace(reqs=[], multimodal_inputs=[None, None])
    with MRopeDeltas(2, "cpu").shown_in(batch):
        assert batch.multimodal_inputs == [None, None]
