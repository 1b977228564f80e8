"""Requests for no token are prefill-only under a speculative algorithm too."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.runtime_context import get_context
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from specvlm_sglang.host import prefill_only
from tests.support.hooks import unhooked


@pytest.fixture(autouse=True)
def speculative() -> Iterator[None]:
    with (
        unhooked(("sglang.srt.managers.schedule_batch", "Req.is_prefill_only")),
        get_context().override_server_args(speculative_algorithm="STANDALONE"),
    ):
        # What the hook is for.
        assert not req(0).is_prefill_only
        prefill_only.install()
        yield


def req(max_new_tokens: int) -> Any:
    return Req("r", None, array("q", [1, 2]), SamplingParams(max_new_tokens=max_new_tokens))


@pytest.mark.parametrize(("tokens", "expected"), [(0, True), (1, False), (16, False)])
def test_a_request_is_prefill_only_if_it_asks_for_no_token(tokens: int, expected: bool) -> None:
    assert req(tokens).is_prefill_only is expected


@pytest.mark.parametrize(("tokens", "expected"), [((0, 0), True), ((0, 8), False)])
def test_a_batch_samples_as_soon_as_one_of_its_requests_wants_a_token(
    tokens: tuple[int, ...], expected: bool
) -> None:
    batch = ScheduleBatch.init_new(
        [req(count) for count in tokens],
        SimpleNamespace(device="cpu"),
        None,
        None,
        SimpleNamespace(vocab_size=100),
        False,
        SpeculativeAlgorithm.STANDALONE,
    )
    assert batch.is_prefill_only is expected
