"""Time of one step's attention on the CPU, all layers, against SGLang's torch_native backend.

    pytest benchmarks/kernels/test_cpu_attention.py

The shape is that of a 366M-parameter Qwen2 in bfloat16: 24 layers, 16 query heads on 4 KV heads of
width 64. Times include planning the step and storing its keys and values. ``fresh`` requests own
consecutive KV slots, as after a start; ``scattered`` ones own none that follow each other.
"""

import pytest
import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.speculative.eagle_info import EagleVerifyInput

from specvlm_sglang.cpu.attention.backend import SpecVLMTorchAttnBackend
from tests.support.attention import AttentionRig

LAYERS = 24
BACKENDS = {"specvlm_torch": SpecVLMTorchAttnBackend, "torch_native": TorchNativeAttnBackend}
SLOTS = {"fresh": 0, "scattered": 1}


def rig_of(cached, room, slots="fresh"):
    return AttentionRig(
        cached,
        room,
        dtype=torch.bfloat16,
        heads=16,
        kv_heads=4,
        head_dim=64,
        longest_run=SLOTS[slots],
        layers=LAYERS,
    )


def time_step(benchmark, rig, backend_class, batch):
    backend, layer = backend_class(rig.runner), rig.layer
    rows = batch.out_cache_loc.shape[0]
    q = rig.random((rows, 16 * 64))
    k, v = rig.random((rows, 4, 64)), rig.random((rows, 4, 64))

    def step():
        backend.init_forward_metadata(batch)
        with forward_context(ForwardContext(attn_backend=backend)):
            for layer.layer_id in range(LAYERS):
                layer(q, k, v, batch)

    benchmark(step)


def decode_batch(rig):
    lens = [cached + 1 for cached in rig.cached]
    new = [rig.slots[i][cached] for i, cached in enumerate(rig.cached)]
    return rig.batch(ForwardMode.DECODE, lens, new)


def verify_batch(rig, topk):
    rows = 8
    chain = torch.ones(rows, rows, dtype=torch.bool).tril()
    context = torch.ones(rows, rig.cached[0], dtype=torch.bool)
    empty = torch.empty(0, dtype=torch.int64)
    spec_info = EagleVerifyInput(
        draft_token=empty,
        custom_mask=torch.cat([context, chain], dim=1).flatten().repeat(len(rig.cached)),
        positions=empty,
        retrieve_index=empty,
        retrieve_next_token=empty,
        retrieve_next_sibling=empty,
        retrieve_cum_len=None,
        spec_steps=rows - 1,
        topk=topk,
        draft_token_num=rows,
        capture_hidden_mode=CaptureHiddenMode.NULL,
        seq_lens_sum=sum(rig.cached),
        seq_lens_cpu=torch.tensor(rig.cached),
    )
    new = [s for i, n in enumerate(rig.cached) for s in rig.slots[i][n : n + rows]]
    return rig.batch(ForwardMode.TARGET_VERIFY, rig.cached, new, spec_info=spec_info)


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("context", [8, 2000, 16000])
def test_decode(benchmark, context, backend, slots):
    benchmark.group = f"decode one row, {context} tokens"
    rig = rig_of([context], 1, slots)
    time_step(benchmark, rig, BACKENDS[backend], decode_batch(rig))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("context", [50, 2000])
def test_decode_eight_requests(benchmark, context, backend):
    benchmark.group = f"decode 8 requests, {context} tokens each"
    rig = rig_of([context] * 8, 1)
    time_step(benchmark, rig, BACKENDS[backend], decode_batch(rig))


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("topk", [1, 4])
@pytest.mark.parametrize("context", [8, 2000, 16000])
def test_verify_eight_rows(benchmark, context, topk, slots):
    benchmark.group = f"verify 8 rows, {context} tokens"
    rig = rig_of([context], 8, slots)
    time_step(benchmark, rig, SpecVLMTorchAttnBackend, verify_batch(rig, topk))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("cached", "new"), [(0, 2000), (8000, 512)])
def test_prefill(benchmark, cached, new, backend):
    benchmark.group = f"prefill {new} tokens after {cached}"
    rig = rig_of([cached], new)
    time_step(benchmark, rig, BACKENDS[backend], rig.extension([new]))
