"""Query rows taken from a real attention backend's prefill."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from specvlm_sglang.cpu.attention.backend import SpecVLMTorchAttnBackend
from specvlm_sglang.scoring.capture import CapturedRows, QueryCapture
from tests.support.attention import AttentionRig

HEADS, HEAD_DIM = 4, 16


def attend(
    rig: AttentionRig, backend: Any, new: list[int], batch: Any = None
) -> tuple[torch.Tensor, torch.Tensor]:
    batch = batch or rig.extension(new)
    backend.init_forward_metadata(batch)
    return rig.attend(backend, batch)


def watched(rig: AttentionRig) -> tuple[QueryCapture, SpecVLMTorchAttnBackend]:
    capture, backend = QueryCapture(), SpecVLMTorchAttnBackend(rig.runner)
    capture.watch(backend)
    return capture, backend


def rows_of(q: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    return q.view(-1, HEADS, HEAD_DIM)[start:stop]


def only_layer(rows: CapturedRows) -> torch.Tensor:
    (chunks,) = rows.queries.values()
    return torch.cat(chunks)


def test_the_rows_of_several_requests_come_out_of_one_flat_batch() -> None:
    rig = AttentionRig([4, 0, 7], 12)
    capture, backend = watched(rig)
    first, last = CapturedRows(), CapturedRows()
    # Requests of 5, 6 and 3 new tokens; the second one has no query rows.
    capture.arm([(first, 2, 5), (last, 11, 14)])
    q, _ = attend(rig, backend, [5, 6, 3])
    torch.testing.assert_close(only_layer(first), rows_of(q, 2, 5), rtol=0, atol=0)
    torch.testing.assert_close(only_layer(last), rows_of(q, 11, 14), rtol=0, atol=0)
    assert (first.rows(), last.rows()) == (3, 3)


def test_chunks_accumulate_in_prompt_order() -> None:
    rig = AttentionRig([0, 3], 12)
    capture, backend = watched(rig)
    rows = CapturedRows()
    assert rows.rows() == 0
    expected = []
    for start, stop in ((3, 6), (0, 4), (1, 2)):
        capture.arm([(rows, start, stop)])
        q, _ = attend(rig, backend, [6, 2])
        expected.append(rows_of(q, start, stop))
    assert rows.rows() == 8
    torch.testing.assert_close(only_layer(rows), torch.cat(expected), rtol=0, atol=0)


def test_rows_survive_the_reuse_of_the_models_buffers() -> None:
    rig = AttentionRig([0], 8)
    capture, backend = watched(rig)
    rows = CapturedRows()
    capture.arm([(rows, 1, 3)])
    q, _ = attend(rig, backend, [4])
    before = rows_of(q, 1, 3).clone()
    q.zero_()
    torch.testing.assert_close(only_layer(rows), before, rtol=0, atol=0)
    assert only_layer(rows).untyped_storage().nbytes() == before.numel() * before.element_size()


def test_nothing_is_kept_before_arming_or_after_disarming() -> None:
    rig = AttentionRig([0], 8)
    capture, backend = watched(rig)
    rows = CapturedRows()
    attend(rig, backend, [4])
    capture.arm([(rows, 0, 4)])
    capture.disarm()
    attend(rig, backend, [4])
    assert rows.queries == {}
    assert capture.layers == {}


def test_watching_changes_neither_the_output_nor_the_backends_class() -> None:
    outputs = []
    for watch in (False, True):
        rig = AttentionRig([3], 8, seed=4)
        backend: Any = SpecVLMTorchAttnBackend(rig.runner)
        if watch:
            capture = QueryCapture()
            capture.watch(backend)
            capture.arm([(CapturedRows(), 0, 4)])
        outputs.append(attend(rig, backend, [4])[1])
        assert type(backend) is SpecVLMTorchAttnBackend
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)


def test_other_instances_of_the_backend_are_not_watched() -> None:
    rig = AttentionRig([0], 8)
    capture, _ = watched(rig)
    rows = CapturedRows()
    capture.arm([(rows, 0, 4)])
    attend(rig, SpecVLMTorchAttnBackend(rig.runner), [4])
    assert rows.queries == {}


@pytest.mark.parametrize("logit_cap", [0.0, 30.0])
def test_what_scores_need_of_a_layer_is_noted(logit_cap: float) -> None:
    rig = AttentionRig([0], 8, logit_cap=logit_cap)
    capture, backend = watched(rig)
    capture.arm([(CapturedRows(), 0, 4)])
    attend(rig, backend, [4])
    (facts,) = capture.layers.values()
    assert facts.scaling == HEAD_DIM**-0.5
    assert facts.logit_cap == logit_cap
    assert facts.key_scale == 1.0


def test_the_scale_of_a_quantised_cache_is_noted() -> None:
    rig = AttentionRig([0], 8)
    capture, _ = watched(rig)
    rig.layer.k_scale_float = 0.5
    capture.arm([(CapturedRows(), 0, 1)])
    capture._keep(rig.random((2, HEADS * HEAD_DIM)), rig.layer)
    assert capture.layers[0].key_scale == 0.5


def test_layers_are_kept_apart_by_their_id() -> None:
    rig = AttentionRig([0], 8, layers=2)
    capture, backend = watched(rig)
    rows = CapturedRows()
    capture.arm([(rows, 2, 4)])
    queries = []
    for layer_id in (0, 1):
        rig.layer.layer_id = layer_id
        batch = rig.extension([4])
        backend.init_forward_metadata(batch)
        q = rig.random((4, HEADS * HEAD_DIM))
        k, v = rig.random((4, 2, HEAD_DIM)), rig.random((4, 2, HEAD_DIM))
        backend.forward_extend(q, k, v, rig.layer, batch)
        queries.append(q)
    assert rows.rows() == 2
    for layer_id, q in enumerate(queries):
        torch.testing.assert_close(
            torch.cat(rows.queries[layer_id]), rows_of(q, 2, 4), rtol=0, atol=0
        )


def test_sliding_window_layers_are_skipped_and_recorded() -> None:
    rig = AttentionRig([0], 8, window=3)
    capture, backend = watched(rig)
    rows = CapturedRows()
    capture.arm([(rows, 0, 4)])
    attend(rig, backend, [4])
    assert rows.queries == {}
    assert capture.skipped_layers == {0}
    assert capture.layers == {}


def test_cross_attention_layers_are_skipped_and_recorded() -> None:
    # Our CPU backend refuses such layers, so a stand-in answers for the model's own.
    rig = AttentionRig([0], 8)
    rig.layer.is_cross_attention = True
    rig.layer.layer_id = 5
    backend = SimpleNamespace(forward_extend=lambda q, *_: q)
    capture = QueryCapture()
    capture.watch(backend)
    rows = CapturedRows()
    capture.arm([(rows, 0, 4)])
    q = rig.random((4, HEADS * HEAD_DIM))
    assert backend.forward_extend(q, None, None, rig.layer, None) is q
    assert rows.queries == {}
    assert capture.skipped_layers == {5}


def test_what_the_caller_passes_reaches_the_backend_unchanged() -> None:
    seen: list[Any] = []
    backend = SimpleNamespace(forward_extend=lambda *args, **kwargs: seen.append((args, kwargs)))
    QueryCapture().watch(backend)
    backend.forward_extend(1, 2, 3, 4, 5, 6, save_kv_cache=False)
    assert seen == [((1, 2, 3, 4, 5, 6), {"save_kv_cache": False})]


def test_of_separate_backends_it_is_prefills_that_is_watched() -> None:
    prefill = SimpleNamespace(forward_extend=lambda *_: None)
    outer = SimpleNamespace(forward_extend=lambda *_: None, prefill_backend=prefill)
    before = outer.forward_extend, prefill.forward_extend
    QueryCapture().watch(outer)
    assert outer.forward_extend is before[0]
    assert prefill.forward_extend is not before[1]
