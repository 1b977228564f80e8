"""How SGLang finds the backend, and what the backend refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.arg_groups import choices
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.speculative import draft_utils

from specvlm_sglang.cpu.attention import BACKEND_NAME, register
from specvlm_sglang.cpu.attention.backend import SpecVLMTorchAttnBackend
from specvlm_sglang.cpu.attention.draft import SpecVLMTorchMultiStepDraftBackend
from tests.support.attention import AttentionRig


@pytest.fixture
def rig(monkeypatch) -> AttentionRig:
    register()
    monkeypatch.setattr(draft_utils, "attention_backends", lambda: ("triton", "triton"))
    monkeypatch.setattr(
        draft_utils, "get_spec", lambda: SimpleNamespace(speculative_attention_mode="prefill")
    )
    monkeypatch.setattr(
        "specvlm_sglang.cpu.attention.draft.resolve_draft_decode_window", lambda runner: (0, 0)
    )
    rig = AttentionRig([3], 8)
    text_config = SimpleNamespace()
    rig.runner.model_config.hf_config = text_config
    rig.runner.model_config.hf_text_config = text_config
    rig.runner.draft_attention_backend = BACKEND_NAME
    return rig


def test_registering_twice_offers_the_name_once(rig):
    register()
    assert choices.ATTENTION_BACKEND_CHOICES.count(BACKEND_NAME) == 1
    assert choices.DRAFT_ATTENTION_BACKEND_CHOICES.count(BACKEND_NAME) == 1
    assert isinstance(ATTENTION_BACKENDS[BACKEND_NAME](rig.runner), SpecVLMTorchAttnBackend)


def test_the_draft_factory_builds_one_stamped_backend_per_forward(rig):
    factory = draft_utils.DraftBackendFactory(rig.runner, topk=2, speculative_num_steps=4)
    backend = factory.create_decode_backend()
    assert isinstance(backend, SpecVLMTorchMultiStepDraftBackend)
    assert [child.draft_step.index for child in backend.attn_backends] == [0, 1, 2]
    assert {child.draft_step.topk for child in backend.attn_backends} == {2}
    stamped = [backend, *backend.attn_backends]
    assert {item.decode_attention_backend_str for item in stamped} == {BACKEND_NAME}


def test_the_draft_factory_builds_a_plain_backend_for_draft_extension(rig):
    factory = draft_utils.DraftBackendFactory(rig.runner, topk=2, speculative_num_steps=4)
    backend = factory.create_draft_extend_backend()
    assert isinstance(backend, SpecVLMTorchAttnBackend)
    assert backend.draft_step is None


def test_the_draft_factory_still_refuses_unknown_names(rig):
    rig.runner.draft_attention_backend = "torch_native"
    factory = draft_utils.DraftBackendFactory(rig.runner, topk=1, speculative_num_steps=4)
    with pytest.raises(ValueError, match="torch_native"):
        factory.create_decode_backend()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("device", "cuda", "needs --device cpu, not cuda"),
        ("use_mla_backend", True, "MLA"),
        ("token_to_kv_pool", SimpleNamespace(dtype=torch.float8_e4m3fn), "--kv-cache-dtype"),
    ],
)
def test_what_cannot_be_served_is_refused_at_start_up(rig, field, value, message):
    setattr(rig.runner, field, value)
    with pytest.raises(ValueError, match=message):
        SpecVLMTorchAttnBackend(rig.runner)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("is_cross_attention", True, "cross-attention"),
        ("xai_temperature_len", 1024, "temperature"),
        ("logit_capping_method", "relu", "relu"),
    ],
)
def test_layers_that_would_be_computed_wrongly_are_refused(rig, attribute, value, message):
    rig.layer.logit_cap = 1.0
    setattr(rig.layer, attribute, value)
    backend = SpecVLMTorchAttnBackend(rig.runner)
    batch = rig.extension([2])
    backend.init_forward_metadata(batch)
    with pytest.raises(NotImplementedError, match=message):
        rig.attend(backend, batch)


def test_attention_sinks_are_refused_by_name(rig):
    backend = SpecVLMTorchAttnBackend(rig.runner)
    batch = rig.extension([2])
    backend.init_forward_metadata(batch)
    q = rig.random((2, 64))
    with pytest.raises(NotImplementedError, match="'sinks'"):
        backend.forward(q, None, None, rig.layer, batch, sinks=torch.zeros(4))


def test_encoder_decoder_batches_are_refused(rig):
    batch = rig.extension([2])
    batch.encoder_lens = torch.tensor([5])
    with pytest.raises(NotImplementedError, match="encoder-decoder"):
        SpecVLMTorchAttnBackend(rig.runner).init_forward_metadata(batch)


def test_graph_capture_is_refused_with_the_flag_that_turns_it_off(rig):
    backend = SpecVLMTorchAttnBackend(rig.runner)
    draft = SpecVLMTorchMultiStepDraftBackend(rig.runner, 1, 3)
    for refuse in (
        lambda: backend.init_cuda_graph_state(1, 1),
        lambda: backend.init_forward_metadata_out_graph(None),
        lambda: backend.init_forward_metadata_for_breakable_cuda_graph_capture(None),
        lambda: draft.init_cuda_graph_state(1, 1),
    ):
        with pytest.raises(NotImplementedError, match="--disable-cuda-graph"):
            refuse()
    with pytest.raises(NotImplementedError, match="SGLANG_ENABLE_OVERLAP_PLAN_STREAM"):
        backend.update_verify_buffers_to_fill_after_draft(None, None)


def test_a_forward_pass_without_its_metadata_is_refused(rig):
    backend = SpecVLMTorchAttnBackend(rig.runner)
    batch = rig.extension([4])
    with pytest.raises(RuntimeError, match="init_forward_metadata"):
        rig.attend(backend, batch)
    backend.init_forward_metadata(batch)
    fewer = rig.extension([2])
    with pytest.raises(RuntimeError, match="2 query rows for a batch planned with 4"):
        rig.attend(backend, fewer)
