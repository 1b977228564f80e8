"""Scores that grow behind a real attention backend's prefill."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from specvlm_sglang.cpu.attention.backend import SpecVLMTorchAttnBackend
from specvlm_sglang.pruning.layout import find_video
from specvlm_sglang.report.phases import PhaseClock
from specvlm_sglang.scoring.attention_scores import accumulate_layer_scores
from specvlm_sglang.scoring.running import RowsOfPass, RunningScorer, RunningScores
from specvlm_sglang.scoring.scorer import Scorer
from tests.support.attention import AttentionRig

HEADS, HEAD_DIM = 4, 16
VIDEO = [1, 2, 4]
"""Positions of the video in every prompt here."""


def attend(
    rig: AttentionRig, backend: Any, new: list[int], batch: Any = None
) -> tuple[torch.Tensor, torch.Tensor]:
    batch = batch or rig.extension(new)
    backend.init_forward_metadata(batch)
    return rig.attend(backend, batch)


def watched(rig: AttentionRig) -> tuple[RunningScorer, SpecVLMTorchAttnBackend]:
    scorer = RunningScorer(rig.pool.get_key_buffer)
    backend = SpecVLMTorchAttnBackend(rig.runner)
    scorer.watch(backend)
    return scorer, backend


def rows_of(
    rig: AttentionRig, scores: RunningScores, request: int, at: int, positions: range
) -> RowsOfPass:
    """Query rows at these positions of a request, from place ``at`` of the pass on."""
    return RowsOfPass(
        scores,
        at,
        at + len(positions),
        torch.tensor(rig.slots[request][: positions.stop]),
        torch.arange(positions.start, positions.stop),
        torch.tensor(VIDEO),
    )


def expected(rig: AttentionRig, q: torch.Tensor, rows: RowsOfPass) -> torch.Tensor:
    """The op on the same rows, once the pass is over."""
    total = torch.zeros(len(VIDEO))
    accumulate_layer_scores(
        total,
        q.view(-1, HEADS, HEAD_DIM)[rows.start : rows.stop],
        rig.pool.get_key_buffer(0),
        rows.slots,
        rows.query_positions,
        rows.video_positions,
        rig.layer.scaling,
        logit_cap=rig.layer.logit_cap or None,
    )
    return total


@pytest.mark.parametrize("logit_cap", [0.0, 30.0])
def test_the_rows_of_several_requests_are_scored_in_one_pass(logit_cap: float) -> None:
    rig = AttentionRig([4, 0, 7], 12, logit_cap=logit_cap)
    scorer, backend = watched(rig)
    first, last = RunningScores(), RunningScores()
    # Requests of 5, 6 and 3 new tokens; the second one has no query rows.
    plan = [
        rows_of(rig, first, 0, 2, range(6, 9)),
        rows_of(rig, last, 2, 11, range(7, 10)),
    ]
    scorer.arm(plan)
    q, _ = attend(rig, backend, [5, 6, 3])
    scorer.disarm()
    for scores, rows in zip((first, last), plan, strict=True):
        assert scores.failure is None
        assert (scores.rows, scores.layers, scores.heads) == (3, {0}, HEADS)
        assert scores.total is not None
        torch.testing.assert_close(scores.total, expected(rig, q, rows), rtol=0, atol=0)
        assert scores.total.min() > 0


def test_passes_add_up() -> None:
    rig = AttentionRig([6], 12)
    scorer, backend = watched(rig)
    scores, wanted = RunningScores(), torch.zeros(len(VIDEO))
    for _ in range(2):
        rows = rows_of(rig, scores, 0, 1, range(7, 9))
        scorer.arm([rows])
        q, _ = attend(rig, backend, [4])
        scorer.disarm()
        wanted += expected(rig, q, rows)
    assert (scores.rows, scores.layers) == (4, {0})
    assert scores.total is not None
    torch.testing.assert_close(scores.total, wanted)


def test_layers_add_up_by_their_own_keys() -> None:
    rig = AttentionRig([6], 8, layers=2)
    scorer, backend = watched(rig)
    scores, wanted = RunningScores(), torch.zeros(len(VIDEO))
    rows = rows_of(rig, scores, 0, 0, range(6, 8))
    scorer.arm([rows])
    for layer_id in (0, 1):
        rig.layer.layer_id = layer_id
        batch = rig.extension([4])
        backend.init_forward_metadata(batch)
        q = rig.random((4, HEADS * HEAD_DIM))
        k, v = rig.random((4, 2, HEAD_DIM)), rig.random((4, 2, HEAD_DIM))
        backend.forward_extend(q, k, v, rig.layer, batch)
        accumulate_layer_scores(
            wanted,
            q.view(-1, HEADS, HEAD_DIM)[:2],
            rig.pool.get_key_buffer(layer_id),
            rows.slots,
            rows.query_positions,
            rows.video_positions,
            rig.layer.scaling,
        )
    scorer.disarm()
    assert (scores.rows, scores.layers) == (2, {0, 1})
    torch.testing.assert_close(scores.total, wanted)


def test_nothing_is_scored_before_arming_or_after_disarming() -> None:
    rig = AttentionRig([6], 8)
    scorer, backend = watched(rig)
    scores = RunningScores()
    attend(rig, backend, [4])
    scorer.arm([rows_of(rig, scores, 0, 0, range(6, 8))])
    scorer.disarm()
    attend(rig, backend, [4])
    assert scores == RunningScores()


def test_watching_changes_neither_the_output_nor_the_backends_class() -> None:
    outputs = []
    for watch in (False, True):
        rig = AttentionRig([6], 8, seed=4)
        backend: Any = SpecVLMTorchAttnBackend(rig.runner)
        if watch:
            scorer = RunningScorer(rig.pool.get_key_buffer)
            scorer.watch(backend)
            scorer.arm([rows_of(rig, RunningScores(), 0, 0, range(6, 10))])
        outputs.append(attend(rig, backend, [4])[1])
        assert type(backend) is SpecVLMTorchAttnBackend
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)


def test_other_instances_of_the_backend_are_not_watched() -> None:
    rig = AttentionRig([6], 8)
    scorer, _ = watched(rig)
    scores = RunningScores()
    scorer.arm([rows_of(rig, scores, 0, 0, range(6, 8))])
    attend(rig, SpecVLMTorchAttnBackend(rig.runner), [4])
    scorer.disarm()
    assert scores == RunningScores()


def test_keys_of_a_quantised_cache_are_scaled() -> None:
    rig = AttentionRig([6], 8)
    scorer, backend = watched(rig)
    totals = []
    for scale in (None, 0.5):
        scores = RunningScores()
        rig.layer.k_scale_float = scale
        batch = rig.extension([4])
        backend.init_forward_metadata(batch)
        scorer.arm([rows_of(rig, scores, 0, 0, range(6, 8))])
        # The same queries, on the keys that the pool has.
        scorer._add(torch.linspace(-2, 2, 4 * HEADS * HEAD_DIM).view(4, -1), rig.layer)
        totals.append(scores.total)
    assert not torch.allclose(*totals)


def test_layers_and_the_last_row_are_kept_apart_for_a_policy_that_asks_for_them() -> None:
    rig = AttentionRig([6], 12)
    scorer, backend = watched(rig)
    kinds = frozenset({"scores", "layer_scores", "last_row_scores"})
    plain, asked = RunningScores(), RunningScores(kinds=kinds)
    by_layer, last = torch.zeros(2, len(VIDEO)), torch.zeros(len(VIDEO))
    for has_last in (False, True):
        both = [rows_of(rig, scores, 0, 1, range(7, 9)) for scores in (plain, asked)]
        plan = [replace(rows, has_last=has_last) for rows in both]
        scorer.arm(plan)
        q, _ = attend(rig, backend, [4])
        # A second layer with the same keys.
        rig.layer.layer_id = 5
        with mock.patch.object(scorer, "_keys_of", return_value=rig.pool.get_key_buffer(0)):
            scorer._add(2 * q, rig.layer)
        rig.layer.layer_id = 0
        scorer.disarm()
        rows, only_last = plan[1], replace(plan[1], start=2, query_positions=torch.tensor([8]))
        for layer, queries in enumerate((q, 2 * q)):
            by_layer[layer] += expected(rig, queries, rows)
            if has_last:
                last += expected(rig, queries, only_last)
    assert asked.failure is None
    assert (asked.rows, asked.layers) == (plain.rows, plain.layers) == (4, {0, 5})
    torch.testing.assert_close(torch.stack([asked.by_layer[0], asked.by_layer[5]]), by_layer)
    torch.testing.assert_close(plain.total, by_layer.sum(0))
    torch.testing.assert_close(asked.last_row, last)
    assert not asked.total.any()
    assert plain.last_row is None
    assert not plain.by_layer


def test_a_failure_costs_the_request_its_scores_and_nobody_else_anything() -> None:
    rig = AttentionRig([6, 6], 8)
    scorer, backend = watched(rig)
    broken, sound = RunningScores(), RunningScores()
    bad = rows_of(rig, broken, 0, 0, range(6, 8))
    object.__setattr__(bad, "slots", bad.slots + 10_000)
    good = rows_of(rig, sound, 1, 4, range(6, 8))
    scorer.arm([bad, good])
    q, attended = attend(rig, backend, [4, 4])
    scorer.disarm()
    assert attended.isfinite().all()
    assert isinstance(broken.failure, IndexError)
    assert broken.failure.__traceback__ is None, "it would keep the pass's tensors"
    assert sound.failure is None
    torch.testing.assert_close(sound.total, expected(rig, q, good), rtol=0, atol=0)


def test_sliding_window_layers_are_skipped_and_recorded() -> None:
    rig = AttentionRig([6], 8, window=3)
    scorer, backend = watched(rig)
    scores = RunningScores()
    scorer.arm([rows_of(rig, scores, 0, 0, range(6, 8))])
    attend(rig, backend, [4])
    scorer.disarm()
    assert scores == RunningScores()
    assert scorer.skipped_layers == {0}


def test_cross_attention_layers_are_skipped_and_recorded() -> None:
    # Our CPU backend refuses such layers, so a stand-in answers for the model's own.
    rig = AttentionRig([6], 8)
    rig.layer.is_cross_attention = True
    rig.layer.layer_id = 5
    backend = SimpleNamespace(forward_extend=lambda q, *_: q)
    scorer = RunningScorer(rig.pool.get_key_buffer)
    scorer.watch(backend)
    scores = RunningScores()
    scorer.arm([rows_of(rig, scores, 0, 0, range(6, 8))])
    q = rig.random((4, HEADS * HEAD_DIM))
    assert backend.forward_extend(q, None, None, rig.layer, None) is q
    assert scores.total is None
    assert scorer.skipped_layers == {5}


def test_layers_with_attention_sinks_are_skipped_and_recorded() -> None:
    # Our CPU backend knows no sinks, so a stand-in answers for the model's own.
    rig = AttentionRig([6], 8)
    backend = SimpleNamespace(forward_extend=lambda q, *_, **__: q)
    scorer = RunningScorer(rig.pool.get_key_buffer)
    scorer.watch(backend)
    scores = RunningScores()
    scorer.arm([rows_of(rig, scores, 0, 0, range(6, 8))])
    q = rig.random((4, HEADS * HEAD_DIM))
    backend.forward_extend(q, None, None, rig.layer, None, sinks=torch.zeros(HEADS))
    assert scores.total is None
    assert scorer.skipped_layers == {0}


def test_of_mixed_layers_those_score_that_see_the_whole_prompt() -> None:
    rig = AttentionRig([6], 8, layers=2)
    scorer, backend = watched(rig)
    scores = RunningScores()
    rows = rows_of(rig, scores, 0, 0, range(6, 8))
    scorer.arm([rows])
    q, _ = attend(rig, backend, [4])
    wanted = expected(rig, q, rows)
    rig.layer.layer_id, rig.layer.sliding_window_size = 1, 3
    batch = rig.extension([4])
    backend.init_forward_metadata(batch)
    k, v = rig.random((4, 2, HEAD_DIM)), rig.random((4, 2, HEAD_DIM))
    backend.forward_extend(rig.random((4, HEADS * HEAD_DIM)), k, v, rig.layer, batch)
    scorer.disarm()
    assert (scores.rows, scores.layers, scorer.skipped_layers) == (2, {0}, {1})
    torch.testing.assert_close(scores.total, wanted)


def test_a_target_none_of_whose_layers_scores_says_so() -> None:
    scorer = Scorer(SimpleNamespace(), PhaseClock("cpu"), "cpu")
    scorer.running.skipped_layers |= {0, 1}
    with pytest.raises(RuntimeError, match="none of the target's 2 attention layers"):
        scorer.check(RunningScores(), find_video(12, [[(1, 4)]], 256))


def test_what_the_caller_passes_reaches_the_backend_unchanged() -> None:
    seen: list[Any] = []
    backend = SimpleNamespace(forward_extend=lambda *args, **kwargs: seen.append((args, kwargs)))
    RunningScorer(lambda _: torch.empty(0)).watch(backend)
    backend.forward_extend(1, 2, 3, 4, 5, 6, save_kv_cache=False)
    assert seen == [((1, 2, 3, 4, 5, 6), {"save_kv_cache": False})]


def test_of_separate_backends_it_is_prefills_that_is_watched() -> None:
    prefill = SimpleNamespace(forward_extend=lambda *_: None)
    outer = SimpleNamespace(forward_extend=lambda *_: None, prefill_backend=prefill)
    before = outer.forward_extend, prefill.forward_extend
    RunningScorer(lambda _: torch.empty(0)).watch(outer)
    assert outer.forward_extend is before[0]
    assert prefill.forward_extend is not before[1]


def test_a_backend_that_only_names_its_kernels_for_prefill_is_watched_itself() -> None:
    """SGLang's FlashInfer backend: ``prefill_backend = "fa2"``."""
    backend = SimpleNamespace(forward_extend=lambda *_: None, prefill_backend="fa2")
    before = backend.forward_extend
    RunningScorer(lambda _: torch.empty(0)).watch(backend)
    assert backend.forward_extend is not before
