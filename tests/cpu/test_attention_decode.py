"""Decode: one row a request, and the steps of a draft."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from specvlm_sglang.cpu.attention.backend import SpecVLMTorchAttnBackend
from specvlm_sglang.cpu.attention.draft import SpecVLMTorchMultiStepDraftBackend
from specvlm_sglang.cpu.attention.plan import PlanOptions, plan_calls
from specvlm_sglang.cpu.attention.requests import DraftStep, RequestKeys
from tests.support.attention import TYPES_AND_HEADS, AttentionRig


def decode(rig: AttentionRig) -> None:
    """Append one token to each request and compare with the oracle."""
    backend = SpecVLMTorchAttnBackend(rig.runner)
    seq_lens = [cached + 1 for cached in rig.cached]
    slots = [rig.slots[i][cached] for i, cached in enumerate(rig.cached)]
    # Positions of a pruned prompt exceed its lengths; nothing may be read off them.
    positions = torch.tensor(seq_lens) + 10_000
    batch = rig.batch(ForwardMode.DECODE, seq_lens, slots, positions=positions)
    backend.init_forward_metadata(batch)
    q, out = rig.attend(backend, batch)
    rig.check(q, out, [rig.up_to(i, cached) for i, cached in enumerate(rig.cached)])


@pytest.mark.parametrize(("dtype", "heads", "kv_heads"), TYPES_AND_HEADS)
@pytest.mark.parametrize("cached", [[0], [300], [0, 5, 77, 12], [130, 3, 900, 40, 127, 128]])
def test_each_row_sees_its_request_and_itself(dtype, heads, kv_heads, cached):
    decode(AttentionRig(cached, 1, dtype=dtype, heads=heads, kv_heads=kv_heads))


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("longest_run", [0, 1, 200])
@pytest.mark.parametrize("window", [-1, 1, 30, 150])
@pytest.mark.parametrize("logit_cap", [0.0, 1.5])
def test_windows_caps_and_slot_layouts_combine(page_size, longest_run, window, logit_cap):
    decode(
        AttentionRig(
            [0, 31, 100, 2300],
            1,
            page_size=page_size,
            longest_run=longest_run,
            window=window,
            logit_cap=logit_cap,
        )
    )


def test_values_may_be_of_another_width_than_keys():
    decode(AttentionRig([0, 31, 100, 300], 1, v_head_dim=8))


def test_long_runs_are_read_in_place_beside_scattered_slots():
    run, scattered = torch.arange(5000, 6500), torch.arange(1, 601, 2)
    slots = torch.cat([scattered[:100], run, scattered[100:]]).int()
    options = PlanOptions(window=-1, bidirectional=False, group=4, dtype=torch.bfloat16)
    (call,) = plan_calls([RequestKeys(slots, 0, 1, len(slots) - 1)], options)
    in_place, gathered = call.keys
    assert in_place.slots == slice(5000, 6500)
    assert torch.equal(gathered.slots.long(), scattered)


def test_consecutive_slots_are_never_copied():
    slots = torch.arange(40, 940, dtype=torch.int32)
    options = PlanOptions(window=-1, bidirectional=False, group=4, dtype=torch.bfloat16)
    for rows in (1, 8, 100):
        (call,) = plan_calls([RequestKeys(slots, 0, rows, 900 - rows)], options)
        assert all(isinstance(keys.slots, slice) for keys in call.keys)


@pytest.mark.parametrize("cached", [4095, 4608, 5000])
@pytest.mark.parametrize("longest_run", [0, 4500])
@pytest.mark.parametrize("window", [-1, 4200])
def test_very_long_runs_are_read_in_parts(cached, longest_run, window):
    decode(AttentionRig([cached, 3], 1, longest_run=longest_run, window=window))


def test_an_idle_batch_needs_no_requests():
    rig = AttentionRig([3], 1)
    backend = SpecVLMTorchAttnBackend(rig.runner)
    batch = rig.batch(ForwardMode.IDLE, [], [])
    batch.req_pool_indices = batch.req_pool_indices[:0]
    backend.init_forward_metadata(batch)
    out = backend.forward(torch.empty(0, 64), None, None, rig.layer, batch)
    assert out.shape == (0, 64)


def branch_slots(rig: AttentionRig, request: int, topk: int, num_steps: int) -> list[list[int]]:
    """Slots of each branch, as ``prepare_for_draft`` of SGLang lays them out."""
    length, page = rig.cached[request], rig.runner.page_size
    slots = rig.slots[request]
    if page == 1 or topk == 1:
        return [slots[length + b * num_steps :][:num_steps] for b in range(topk)]
    partial = length % page
    pages = (partial + num_steps + page - 1) // page
    starts = [length - partial + b * pages * page + partial for b in range(topk)]
    return [slots[start : start + num_steps] for start in starts]


@pytest.mark.parametrize(
    ("dtype", "topk", "page_size"),
    [
        *((torch.float32, *shape) for shape in product((1, 2, 4), (1, 4))),
        (torch.bfloat16, 4, 1),
        (torch.float16, 4, 1),
    ],
)
@pytest.mark.parametrize("window", [-1, 9])
@pytest.mark.parametrize("longest_run", [0, 1])
def test_draft_step_i_sees_the_context_and_i_plus_1_tokens_of_its_branch(
    monkeypatch, dtype, topk, page_size, window, longest_run
):
    monkeypatch.setattr(
        "specvlm_sglang.cpu.attention.draft.resolve_draft_decode_window", lambda runner: (0, 0)
    )
    num_steps = 4
    rig = AttentionRig(
        [0, 6, 150, 1300],
        topk * (num_steps + 2 * page_size),
        dtype=dtype,
        page_size=page_size,
        window=window,
        longest_run=longest_run,
    )
    branches = [branch_slots(rig, i, topk, num_steps) for i in range(len(rig.cached))]
    backend = SpecVLMTorchMultiStepDraftBackend(rig.runner, topk, num_steps)
    assert len(backend.attn_backends) == num_steps - 1
    every_slot = [slot for request in branches for branch in request for slot in branch]
    batch = rig.batch(ForwardMode.DECODE, rig.cached, every_slot)
    batch.positions = torch.tensor(rig.cached).repeat_interleave(topk) + 10_000
    # What a later step will write must not be looked at before.
    for buffer in (rig.pool.k_buffer[0], rig.pool.v_buffer[0]):
        buffer[every_slot] = torch.nan
    backend.init_forward_metadata(batch)
    for step, step_backend in enumerate(backend.attn_backends):
        written = [branch[step] for request in branches for branch in request]
        batch.out_cache_loc = torch.tensor(written)
        q, out = rig.attend(step_backend, batch)
        visible = []
        for i, request in enumerate(branches):
            first = 0 if window < 0 else max(0, rig.cached[i] + step - window)
            for branch in request:
                keys = rig.slots[i][: rig.cached[i]] + branch[: step + 1]
                visible.append(keys[first:])
        rig.check(q, out, visible)


def test_branch_columns_are_those_of_the_triton_kernel_s_formula():
    assert DraftStep(1, 2, 3, page_size=1).branch_columns(10) == [10, 11, 13, 14]
    # 10 tokens fill 2 of page 2; 2 + 3 more need 2 pages a branch.
    assert DraftStep(1, 2, 3, page_size=4).branch_columns(10) == [10, 11, 18, 19]


def test_a_restricted_draft_window_is_refused(monkeypatch):
    monkeypatch.setattr(
        "specvlm_sglang.cpu.attention.draft.resolve_draft_decode_window", lambda runner: (64, 0)
    )
    with pytest.raises(ValueError, match="--speculative-draft-window-size 64"):
        SpecVLMTorchMultiStepDraftBackend(AttentionRig([3], 1).runner, 1, 3)
