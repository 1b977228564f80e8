"""Which requests are audited, and what is kept of them when SGLang lets go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req

from specvlm_sglang.lossless.audit import recorded
from specvlm_sglang.lossless.audit.recorded import (
    Recorded,
    is_selected,
    mark_weights_changed,
    why_not,
)
from tests.support.finished import finished, with_video


@given(st.text(), st.floats(0, 1))
def test_a_request_stays_selected_when_the_share_grows(rid: str, share: float) -> None:
    assert is_selected(rid, 1.0)
    assert not is_selected(rid, 0.0)
    assert is_selected(rid, share) <= is_selected(rid, min(1.0, share * 1.5))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_the_selected_share_of_many_requests_is_the_share(share: float) -> None:
    chosen = sum(is_selected(f"{number:032x}", share) for number in range(20_000))
    assert chosen == pytest.approx(20_000 * share, abs=5 * (20_000 * share * (1 - share)) ** 0.5)


def test_every_process_selects_the_same_requests() -> None:
    # Tensor-parallel ranks, and servers with other hash seeds.
    chosen = [number for number in range(60) if is_selected(str(number), 0.1)]
    assert chosen == [18, 29, 47, 55]


def aborted(req: Req) -> None:
    req.finished_reason = FINISH_ABORT()


def without_tokens(req: Req) -> None:
    req.finished_len = 0


def in_session(req: Req) -> None:
    req.session = object()


def in_beams(req: Req) -> None:
    req.beam_group = object()


def with_embeddings(req: Req) -> None:
    req.input_embeds = [[0.5]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (aborted, recorded.ABORTED),
        (without_tokens, recorded.EMPTY),
        (in_session, recorded.SESSION),
        (in_beams, recorded.BEAM_SEARCH),
        (with_embeddings, recorded.OWN_INPUTS),
        (mark_weights_changed, recorded.WEIGHTS_CHANGED),
    ],
)
def test_what_cannot_be_replayed_has_a_reason(change: Any, reason: str) -> None:
    req = finished()
    assert why_not(req) is None
    change(req)
    assert why_not(req) == reason


def test_sampled_requests_and_own_logit_processors_are_not_replayed() -> None:
    assert why_not(finished(temperature=0.7)) == recorded.SAMPLED
    assert why_not(finished(custom_logit_processor="{}")) == recorded.LOGIT_PROCESSOR


def test_a_replay_asks_the_same_with_another_name_and_nothing_answered() -> None:
    req = finished("abc", extra_key="tenant", cache_salt="salt", eos_token_ids={5})
    # Accepted beyond the stop, never sent to the client.
    req.output_ids.append(9)
    kept = Recorded.of(req)
    assert (kept.id, kept.output_ids) == ("abc", (7, 8))
    again = kept.new_request()
    assert again.rid != req.rid
    assert list(again.origin_input_ids) == [1, 2, 3]
    assert not again.output_ids
    assert not again.finished()
    for name in ("extra_key", "cache_salt", "eos_token_ids", "vocab_size"):
        assert getattr(again, name) == getattr(req, name)
    assert again.sampling_params is not req.sampling_params
    assert again.sampling_params.max_new_tokens == 2
    again.output_ids.append(4)
    assert not kept.new_request().output_ids


def test_pixels_are_still_there_after_sglang_has_released_them() -> None:
    req = finished()
    pixels = torch.arange(6.0)
    inputs = with_video(req, pixels)
    kept = Recorded.of(req)
    inputs.release_features()
    assert inputs.mm_items[0].feature is None
    first = kept.new_request().multimodal_inputs.mm_items[0]
    assert first.feature is pixels
    assert first.offsets == [(0, 1)]
    assert torch.equal(first.video_grid_thw, torch.tensor([[1, 2, 2]]))
    # A pass of the target moves pixels away; the next replay has them nevertheless.
    first.feature = None
    assert kept.new_request().multimodal_inputs.mm_items[0].feature is pixels


@pytest.mark.parametrize(
    ("pixels", "size"),
    [
        (torch.zeros(10, dtype=torch.float32), 40),
        ([torch.zeros(4), torch.zeros(2, dtype=torch.int8)], 18),
    ],
)
def test_the_pixels_are_weighed(pixels: Any, size: int) -> None:
    req = finished()
    assert Recorded.of(req).pixel_bytes == 0
    with_video(req, pixels)
    assert Recorded.of(req).pixel_bytes == size
