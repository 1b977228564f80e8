"""Extension: prompts, chunks, cached prefixes, draft extension, encoder layers."""

from __future__ import annotations

import pytest
import torch
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from specvlm_sglang.cpu.attention import ops, plan
from specvlm_sglang.cpu.attention.backend import SpecVLMTorchAttnBackend
from tests.support.attention import TYPES_AND_HEADS, AttentionRig

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def extend(rig: AttentionRig, new: list[int], mode: ForwardMode = ForwardMode.EXTEND) -> None:
    """Append ``new`` tokens and compare every row with the causal oracle."""
    backend = SpecVLMTorchAttnBackend(rig.runner)
    batch = rig.extension(new, mode)
    backend.init_forward_metadata(batch)
    q, out = rig.attend(backend, batch)
    visible = [
        rig.up_to(i, rig.cached[i] + row) for i, count in enumerate(new) for row in range(count)
    ]
    rig.check(q, out, visible)


@pytest.mark.parametrize(("dtype", "heads", "kv_heads"), TYPES_AND_HEADS)
@pytest.mark.parametrize("page_size", [1, 16])
def test_a_ragged_batch_with_and_without_prefixes_is_causal(dtype, heads, kv_heads, page_size):
    rig = AttentionRig(
        [0, 5, 140, 33], 70, dtype=dtype, heads=heads, kv_heads=kv_heads, page_size=page_size
    )
    extend(rig, [9, 1, 40, 70])


@pytest.mark.parametrize("longest_run", [0, 1, 7])
@pytest.mark.parametrize("window", [-1, 1, 6, 50, 10_000])
def test_sliding_windows_cut_the_past_whatever_the_slots_look_like(longest_run, window):
    rig = AttentionRig([0, 64, 200], 40, longest_run=longest_run, window=window)
    extend(rig, [40, 3, 33])


@pytest.mark.parametrize("window", [10, 300])
def test_a_long_prompt_is_windowed_block_by_block(window):
    extend(AttentionRig([0, 21], 450, window=window), [450, 5])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [-1, 20])
def test_a_logit_cap_bends_the_scores(dtype, window):
    rig = AttentionRig([0, 90, 17], 60, dtype=dtype, logit_cap=1.5, window=window)
    extend(rig, [12, 60, 1])


def test_the_plain_form_blocks_its_rows(monkeypatch):
    monkeypatch.setattr(ops, "_PLAIN_SCORES", 1000)
    extend(AttentionRig([0, 90], 60, logit_cap=1.5), [50, 60])


@pytest.mark.parametrize("v_head_dim", [8, 24])
def test_values_may_be_of_another_width_than_keys(v_head_dim):
    extend(AttentionRig([0, 90, 17], 60, v_head_dim=v_head_dim), [12, 60, 1])


@pytest.mark.parametrize("cached", [0, 40])
@pytest.mark.parametrize("longest_run", [0, 1100])
def test_a_long_prefix_is_read_in_place_and_merged(cached, longest_run):
    extend(AttentionRig([2500, cached], 40, longest_run=longest_run), [37, 40])


@pytest.mark.parametrize("longest_run", [0, 1, 1100])
def test_a_few_rows_after_a_long_prefix_merge_what_is_scattered(longest_run):
    extend(AttentionRig([2500, 1500], 8, longest_run=longest_run), [8, 5])


def test_oversized_masks_leave_the_context_out(monkeypatch):
    monkeypatch.setattr(plan, "MASK_ENTRIES", 500)
    extend(AttentionRig([300, 0, 220], 20), [20, 20, 3])


def test_requests_that_add_nothing_are_skipped():
    extend(AttentionRig([30, 200, 4], 10), [0, 10, 0])


@pytest.mark.parametrize("mode", [ForwardMode.DRAFT_EXTEND_V2, ForwardMode.MIXED])
def test_other_extending_modes_are_extensions(mode):
    extend(AttentionRig([50, 300, 4], 5), [5, 5, 5], mode)


def test_an_encoder_layer_sees_all_tokens_of_its_request():
    rig = AttentionRig([0, 0], 50, attn_type=AttentionType.ENCODER_ONLY)
    backend = SpecVLMTorchAttnBackend(rig.runner)
    batch = rig.extension([50, 7])
    backend.init_forward_metadata(batch)
    q, out = rig.attend(backend, batch)
    rig.check(q, out, [rig.slots[0][:50]] * 50 + [rig.slots[1][:7]] * 7)


def test_an_encoder_layer_with_a_window_in_effect_is_refused():
    rig = AttentionRig([0], 50, attn_type=AttentionType.ENCODER_ONLY, window=10)
    backend = SpecVLMTorchAttnBackend(rig.runner)
    batch = rig.extension([50])
    backend.init_forward_metadata(batch)
    with pytest.raises(NotImplementedError, match="window of 10"):
        rig.attend(backend, batch)


def test_rows_that_pad_the_batch_come_out_as_zeros():
    rig = AttentionRig([20], 10)
    backend = SpecVLMTorchAttnBackend(rig.runner)
    batch = rig.extension([4])
    backend.init_forward_metadata(batch)
    padding_slot = 0
    padded = rig.batch(ForwardMode.EXTEND, [24], [*batch.out_cache_loc.tolist(), padding_slot])
    q, out = rig.attend(backend, padded)
    rig.check(q[:4], out[:4], [rig.up_to(0, 20 + row) for row in range(4)])
    assert not out[4:].any()


def test_keys_that_another_layer_stored_are_read_without_storing():
    rig = AttentionRig([20], 10)
    backend = SpecVLMTorchAttnBackend(rig.runner)
    batch = rig.extension([4])
    backend.init_forward_metadata(batch)
    before = rig.pool.get_key_buffer(0).clone()
    q = rig.random((4, 64))
    out = backend.forward(q, None, None, rig.layer, batch)
    rig.check(q, out, [rig.up_to(0, 20 + row) for row in range(4)])
    assert torch.equal(rig.pool.get_key_buffer(0), before)


def test_a_cache_of_another_dtype_than_the_queries_is_converted():
    rig = AttentionRig([50, 9], 10, dtype=torch.bfloat16)
    backend = SpecVLMTorchAttnBackend(rig.runner)
    batch = rig.extension([4, 10])
    backend.init_forward_metadata(batch)
    q = torch.randn(14, 64, generator=rig.generator)
    out = backend.forward(q, None, None, rig.layer, batch)
    visible = [rig.up_to(0, 50 + row) for row in range(4)]
    visible += [rig.up_to(1, 9 + row) for row in range(10)]
    torch.testing.assert_close(out.double(), rig.dense(q, visible), rtol=0, atol=2e-5)
