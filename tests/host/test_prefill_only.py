"""Requests for no token are prefill-only under a speculative algorithm too."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.managers.scheduler_components.logprob_result_processor import (
    SchedulerLogprobResultProcessor,
)
from sglang.srt.runtime_context import get_context
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from specvlm_sglang.host import prefill_only
from tests.support.hooks import unhooked

LOGPROBS = (
    "sglang.srt.managers.scheduler_components.logprob_result_processor",
    "SchedulerLogprobResultProcessor.add_logprob_return_values",
)


@pytest.fixture(autouse=True)
def speculative() -> Iterator[None]:
    with (
        unhooked(("sglang.srt.managers.schedule_batch", "Req.is_prefill_only"), LOGPROBS),
        get_context().override_server_args(speculative_algorithm="STANDALONE"),
    ):
        # What the hook is for.
        assert not req(0).is_prefill_only
        prefill_only.install()
        yield


def req(max_new_tokens: int, **more: Any) -> Any:
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    return Req("r", None, array("q", [1, 2]), sampling, **more)


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


@pytest.mark.parametrize(("tokens", "expected"), [(0, []), (4, [-0.25])])
def test_beside_other_requests_too_there_is_no_log_probability_of_no_token(
    tokens: int, expected: list[float]
) -> None:
    """SGLang samples for a batch as a whole."""
    made = req(tokens, return_logprob=True)
    output = SimpleNamespace(next_token_logprobs=[-0.5, -0.25], next_token_top_logprobs_val=None)
    processor = object.__new__(SchedulerLogprobResultProcessor)
    passed = processor.add_logprob_return_values(1, made, 0, [7, 8], 0, output)
    assert (passed, made.logprob.output_token_logprobs_val) == (0, expected)
    assert len(made.logprob.output_token_logprobs_idx) == len(expected)
