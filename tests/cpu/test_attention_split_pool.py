"""Sliding-window layers of a pool that keeps their keys in a part of its own."""

from __future__ import annotations

import pytest
import torch
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

from specvlm_sglang.cpu.attention.backend import SpecVLMTorchAttnBackend
from tests.support.attention import TOLERANCE, AttentionRig


@pytest.mark.parametrize("cached", [[30], [12, 300, 40]])
def test_both_parts_are_read_and_written_by_their_own_numbers(cached):
    rig = AttentionRig(cached, 3, window=9)
    size = rig.pool.size
    pool = SWAKVPool(
        size=size,
        size_swa=size,
        page_size=1,
        dtype=torch.float32,
        head_num=2,
        head_dim=16,
        swa_attention_layer_ids=[0],
        full_attention_layer_ids=[1],
        device="cpu",
        enable_memory_saver=False,
    )
    # The window part numbers its slots in reverse; the last entry maps -1 to -1.
    mapping = torch.cat([torch.arange(size, -1, -1), torch.tensor([-1])])
    pool.register_mapping(mapping)
    full, windowed = pool.full_kv_pool, pool.swa_kv_pool
    for part in (full, windowed):
        for buffer in (*part.k_buffer, *part.v_buffer):
            buffer.copy_(rig.random(buffer.shape))
    rig.runner.token_to_kv_pool = pool
    backend = SpecVLMTorchAttnBackend(rig.runner)
    batch = rig.extension([3] * len(cached), ForwardMode.EXTEND)
    backend.init_forward_metadata(batch)
    rows = 3 * len(cached)
    for layer_id, window in ((0, 9), (1, -1)):
        rig.layer.layer_id, rig.layer.sliding_window_size, rig.window = layer_id, window, window
        q = rig.random((rows, 64))
        k, v = rig.random((rows, 2, 16)), rig.random((rows, 2, 16))
        with forward_context(ForwardContext(attn_backend=backend)):
            out = rig.layer(q, k, v, batch)
        translated = mapping if layer_id == 0 else torch.arange(size + 1)
        part = windowed if layer_id == 0 else full
        assert torch.equal(part.get_key_buffer(0)[translated[batch.out_cache_loc]], k)
        rig.pool = part
        rig.layer.layer_id = 0
        visible = [
            [int(translated[slot]) for slot in rig.up_to(i, have + row)]
            for i, have in enumerate(cached)
            for row in range(3)
        ]
        torch.testing.assert_close(
            out.double(), rig.dense(q, visible), rtol=0, atol=TOLERANCE[torch.float32]
        )
