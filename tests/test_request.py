"""One request: what ``custom_params`` may hold, and what is known of it from start to end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalInputs
from sglang.srt.sampling.sampling_params import SamplingParams

from specvlm_sglang.algorithm import check_options
from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.host import request_validation
from specvlm_sglang.models.qwen2_5_vl import Qwen25VL
from specvlm_sglang.pruning.registry import shipped_policies
from specvlm_sglang.report.entries import RoundEntries
from specvlm_sglang.report.observer import CUSTOM_PROCESSOR, NO_ANSWER
from specvlm_sglang.request import MANY_ROUNDS, RequestOptions, Requests, layout_of, parse_options
from tests.support.hooks import unhooked

POLICIES = tuple(shipped_policies())

SERVER = SpecVLMConfig(retention=0.3, policy="uniform")
BAD = [
    ([1], r"custom_params\.specvlm=\[1\] must be an object"),
    ("0.5", r"custom_params\.specvlm='0\.5' must be an object"),
    ({"retension": 0.5}, "no field 'retension'; it takes retention, policy, top_p, detail"),
    ({"retention": 0}, r"retention=0 must be a number in \(0, 1\]"),
    ({"retention": 1.5}, r"retention=1\.5"),
    ({"retention": "0.5"}, r"retention='0\.5'"),
    ({"retention": True}, "retention=True"),
    ({"retention": None}, "retention=None"),
    ({"retention": float("nan")}, "retention=nan"),
    ({"top_p": 1.5}, r"top_p=1\.5 must be a number in \[0, 1\]"),
    ({"top_p": -0.1}, r"top_p=-0\.1"),
    ({"top_p": True}, "top_p=True"),
    ({"detail": 1}, "detail=1 must be true or false"),
    ({"detail": "yes"}, "detail='yes'"),
    ({"detail": None}, "detail=None"),
    ({"policy": "best"}, "policy='best' must be one of specvlm"),
    ({"policy": "attention/best"}, "policy='attention/best'"),
    ({"draft_video_tokens": 0}, "draft_video_tokens=0 must be an integer of at least 1"),
    ({"draft_video_tokens": -1}, "draft_video_tokens=-1"),
    ({"draft_video_tokens": 1.5}, r"draft_video_tokens=1\.5"),
    ({"draft_video_tokens": True}, "draft_video_tokens=True"),
    ({"draft_video_tokens": "10"}, "draft_video_tokens='10'"),
    ({"policy": None}, "policy=None"),
    ({"policy": ["specvlm"]}, r"policy=\['specvlm'\]"),
]


@pytest.fixture
def validation() -> Iterator[None]:
    with unhooked(("sglang.srt.sampling.sampling_params", "SamplingParams.verify")):
        request_validation.install(check_options)
        yield


@pytest.mark.parametrize("custom", [None, {}, {"other": 1}, {"specvlm": None}, [1], "text"])
def test_a_request_without_options_gets_the_servers(custom: Any) -> None:
    assert parse_options(custom, SERVER) == RequestOptions(0.3, "uniform", 0.2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"retention": 0.25}, (0.25, "uniform", SERVER.top_p)),
        ({"retention": 1}, (1, "uniform", SERVER.top_p)),
        ({"policy": "none"}, (0.3, "none", SERVER.top_p)),
        ({"retention": 0.01, "policy": "specvlm-grid"}, (0.01, "specvlm-grid", SERVER.top_p)),
        ({"top_p": 0}, (0.3, "uniform", 0)),
        ({}, (0.3, "uniform", SERVER.top_p)),
    ],
)
def test_what_a_request_gives_overrides_the_servers_settings(
    given: dict[str, Any], expected: tuple[float, str, float]
) -> None:
    options = parse_options({"specvlm": given}, SERVER)
    assert (options.retention, options.policy, options.top_p) == expected


def test_a_limit_in_tokens_comes_from_the_server_or_from_the_request() -> None:
    server = SpecVLMConfig(draft_video_tokens=100)
    for given, limit in ((None, 100), ({}, 100), ({"draft_video_tokens": 7}, 7)):
        assert parse_options({"specvlm": given}, server).draft_video_tokens == limit
    lifted = parse_options({"specvlm": {"draft_video_tokens": None}}, server)
    assert lifted.draft_video_tokens is None
    assert parse_options(None, SERVER).draft_video_tokens is None


@pytest.mark.parametrize(("given", "message"), BAD)
def test_bad_options_are_refused_with_their_name_and_value(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_options({"specvlm": given}, SERVER)


def test_only_scored_policies_read_scores_and_only_spaced_ones_need_a_grid() -> None:
    options = {policy: RequestOptions(0.5, policy, 0.2) for policy in POLICIES}
    scored = {policy for policy, option in options.items() if option.chosen.needs_scores}
    gridded = {policy for policy, option in options.items() if option.chosen.needs_grid}
    attention = {"attention-spread", "attention-change-spread", "scope", "specvlm-spread"}
    assert scored == {"specvlm", "specvlm-grid", "attention"} | attention
    change = attention | {"floc", "change", "evs"}
    assert gridded == {"specvlm-grid", "uniform-grid", "frames"} | change


@pytest.mark.usefixtures("validation")
@pytest.mark.parametrize(("given", "message"), BAD)
def test_sglang_refuses_the_request_where_it_checks_sampling_parameters(
    given: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(custom_params={"specvlm": given}).verify(vocab_size=100)


@pytest.mark.usefixtures("validation")
def test_sglangs_own_checks_stay_in_place() -> None:
    with pytest.raises(ValueError, match="temperature"):
        SamplingParams(temperature=-1.0, custom_params={"specvlm": {}}).verify(vocab_size=100)
    SamplingParams(custom_params={"specvlm": {"retention": 0.5}}).verify(vocab_size=100)
    SamplingParams().verify(vocab_size=100)


def request(custom_params: Any = None, **fields: Any) -> SimpleNamespace:
    """SGLang's ``Req`` as far as we read it, of a prompt of text."""
    return SimpleNamespace(
        **{
            "rid": "a",
            "sampling_params": SamplingParams(custom_params=custom_params),
            "origin_input_ids": [0] * 24,
            "full_untruncated_fill_ids": [0] * 24,
            "extend_end": 24,
            "multimodal_inputs": None,
            "custom_logit_processor": None,
            "is_prefill_only": False,
            "is_retracted": False,
            "finished": lambda: False,
            "update_spec_correct_drafts_histogram": lambda drafts: None,
            "customized_info": None,
            **fields,
        }
    )


def with_video(first: int, last: int, **fields: Any) -> SimpleNamespace:
    video = MultimodalDataItem(modality=Modality.VIDEO, offsets=[(first, last)])
    video.video_grid_thw = torch.tensor([[1, 4, 2 * (last - first + 1) // 2]])
    return request(multimodal_inputs=MultimodalInputs(mm_items=[video]), **fields)


@pytest.fixture
def requests() -> Requests:
    return Requests(replace(SERVER, policy="specvlm"), Qwen25VL(spatial_merge=2))


def test_a_request_is_read_once_until_its_prompt_changes(requests: Requests) -> None:
    req = request({"specvlm": {"retention": 0.5}})
    first = requests.of(req)
    assert first.options.retention == 0.5
    req.sampling_params.custom_params = None
    assert requests.of(req) is first
    # As in a session: the next turn's request continues the prompt.
    req.origin_input_ids = [0] * 30
    assert requests.of(req).layout.length == 30


def test_options_that_slipped_through_give_way_to_the_servers(
    requests: Requests, caplog: pytest.LogCaptureFixture
) -> None:
    req = request({"specvlm": {"policy": "x"}}, rid="slipped")
    with caplog.at_level(logging.WARNING):
        assert requests.of(req).options == RequestOptions(0.3, "specvlm", 0.2)
        requests.of(req)
    (warning,) = caplog.messages
    assert "slipped" in warning
    assert "policy='x'" in warning


def test_k_and_whether_scores_are_read_follow_from_lengths_and_options(requests: Requests) -> None:
    state = requests.of(with_video(2, 11))
    assert (state.layout.video_tokens, state.kept_video_tokens) == (10, 3)
    assert state.prunes
    assert state.needs_scores
    assert not requests.of(request()).needs_scores
    whole = SamplingParams(custom_params={"specvlm": {"retention": 1.0}})
    assert not requests.of(with_video(2, 11, sampling_params=whole)).prunes
    two = {"retention": 1.0, "draft_video_tokens": 2}
    limited = SamplingParams(custom_params={"specvlm": two})
    assert requests.of(with_video(2, 11, sampling_params=limited)).kept_video_tokens == 2


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"custom_logit_processor": "{}"}, CUSTOM_PROCESSOR),
        ({"is_prefill_only": True}, NO_ANSWER),
    ],
)
def test_a_request_that_gets_no_draft_reads_no_scores(
    requests: Requests, fields: dict[str, Any], why: str
) -> None:
    state = requests.of(with_video(2, 11, **fields))
    assert state.refusal == why
    assert not state.needs_scores
    assert not state.rows_to_score(0, 24)


def test_spans_that_do_not_fit_cost_the_request_its_draft_only(
    requests: Requests, caplog: pytest.LogCaptureFixture
) -> None:
    state = requests.of(with_video(20, 29))
    assert "must ascend within the 24 prompt tokens" in (state.refusal or "")
    assert state.layout.video_tokens == 0
    assert len(caplog.messages) == 1


def test_rows_are_captured_chunk_by_chunk_and_anew_after_a_retraction(requests: Requests) -> None:
    state = requests.of(with_video(2, 11))
    assert (state.layout.query_start, state.layout.query_stop) == (12, 24)
    assert not state.rows_to_score(0, 8)
    assert state.rows_to_score(8, 16) == range(12, 16)
    begun = state.scores
    assert state.rows_to_score(16, 24) == range(16, 24)
    assert state.scores is begun
    assert state.rows_to_score(12, 24) == range(12, 24)
    assert state.scores is not begun
    state.begin_rows_at(20)
    assert state.rows_to_score(16, 24) == range(20, 24)
    state.begin_rows_at(3)
    assert state.layout.query_start == 20, "rows before that are computed"


def test_only_completed_prompts_that_want_an_answer_are_reported(requests: Requests) -> None:
    reqs = [
        request(extend_end=12),
        with_video(2, 11, is_prefill_only=True),
        with_video(2, 11),
        request({"specvlm": {"detail": True}}),
    ]
    complete = requests.complete(reqs)
    assert [one.index for one in complete] == [2, 3]
    assert [one.report.video_tokens for one in complete] == [10, 0]
    assert complete[0].report.detail is None
    assert complete[1].report.detail is not None
    noting = reqs[3].update_spec_correct_drafts_histogram
    assert isinstance(noting, RoundEntries)
    requests.complete(reqs)
    assert reqs[3].update_spec_correct_drafts_histogram is noting, "noted once"


def test_a_draft_is_due_once_from_a_complete_prompt_on(requests: Requests) -> None:
    reqs = [
        request(extend_end=12),
        with_video(2, 11),
        request(custom_logit_processor="{}"),
        request(),
    ]
    assert not requests.due(reqs)
    complete = requests.complete(reqs)
    assert [one.report.pending for one in complete] == [True, False, True]
    # Under overlap scheduling the first token may have been appended by then.
    reqs[1].full_untruncated_fill_ids = [0] * 25
    due = requests.due(reqs)
    assert [(one.index, one.filled) for one in due] == [(1, 24), (3, 24)]
    due[0].state.begun()
    assert not complete[0].report.pending
    assert [one.index for one in requests.due(reqs)] == [3]


def test_a_draft_that_keeps_missing_is_named_once_it_had_many_rounds(requests: Requests) -> None:
    good, bad = request(), request()
    requests.complete([good, bad])
    for _ in range(MANY_ROUNDS - 1):
        assert requests.drafted([good, bad]) == []
        good.update_spec_correct_drafts_histogram(1)
        bad.update_spec_correct_drafts_histogram(0)
    assert requests.drafted([good, bad]) == [bad]
    # After a retraction it has another chance.
    requests.complete([bad])
    assert requests.drafted([good, bad]) == []


@pytest.mark.parametrize(("limit", "left"), [(1, 0), (2, 1), (3, None), (None, None)])
def test_an_answer_of_two_tokens_gets_no_draft(
    requests: Requests, limit: int | None, left: int | None
) -> None:
    parameters = SamplingParams(max_new_tokens=limit)
    (one,) = requests.complete([with_video(2, 11, sampling_params=parameters)])
    if left is None:
        assert one.report.pending
    else:
        assert one.report.cold == f"would not pay: {left} tokens to come at most"
        assert not requests.due([one.req])
    assert one.state.needs_scores == (left is None), "nor are its scores computed"
    # Who wants to see what would be kept gets it all the same.
    parameters = SamplingParams(max_new_tokens=limit, custom_params={"specvlm": {"detail": True}})
    (one,) = requests.complete([with_video(2, 11, sampling_params=parameters)])
    assert one.report.pending


@pytest.mark.parametrize("fields", [{"finished": lambda: True}, {"is_retracted": True}])
def test_no_draft_begins_for_a_request_that_left(requests: Requests, fields: Any) -> None:
    req = request()
    requests.complete([req])
    assert requests.due([req])
    vars(req).update(fields)
    assert not requests.due([req])


def test_a_draft_is_due_again_after_a_retraction(requests: Requests) -> None:
    req = with_video(2, 11)
    requests.complete([req])
    req.full_untruncated_fill_ids, req.extend_end = [0] * 30, 30
    requests.complete([req])
    assert [one.filled for one in requests.due([req])] == [30]


def test_detail_is_given_only_to_a_request_that_asks_for_it() -> None:
    assert not parse_options(None, SERVER).detail
    assert not parse_options({"specvlm": {"retention": 0.5}}, SERVER).detail
    assert parse_options({"specvlm": {"detail": True}}, SERVER).detail


def item(modality: Modality, spans: list[tuple[int, int]]) -> MultimodalDataItem:
    return MultimodalDataItem(modality=modality, feature=torch.zeros(1), offsets=spans)


@pytest.mark.parametrize("together", [False, True])
def test_a_request_is_read_from_what_sglangs_processor_left_on_it(together: bool) -> None:
    spans = [(2, 9), (12, 17)]
    grids = torch.tensor([[2, 4, 4], [1, 4, 6]])
    groups = [(spans, grids)] if together else [([span], grids[i : i + 1]) for i, span in
                                                reversed(list(enumerate(spans)))]  # fmt: skip
    items = [item(Modality.IMAGE, [(19, 20)])]
    for offsets, grid_thw in groups:
        video = item(Modality.VIDEO, offsets)
        video.video_grid_thw = grid_thw
        items.append(video)
    req = SimpleNamespace(
        origin_input_ids=[0] * 24, multimodal_inputs=MultimodalInputs(mm_items=items)
    )
    prompt = layout_of(req, 3, Qwen25VL(spatial_merge=2))
    assert prompt.video_positions.tolist() == [*range(2, 10), *range(12, 18)]
    assert prompt.video_lengths == (8, 6)
    assert prompt.video_grids == ((2, 2, 2), (1, 2, 3))
    assert (prompt.query_start, prompt.query_stop) == (21, 24)


@pytest.mark.parametrize(
    ("seconds", "known"),
    [([0.5], 0.5), (torch.tensor([0.5]), 0.5), (None, None), ([0.5, 1.0], None), ([], None)],
)
def test_the_times_of_a_videos_frames_are_known_where_its_processor_says_them(
    seconds: Any, known: float | None
) -> None:
    req = with_video(2, 11)
    if seconds is not None:
        req.multimodal_inputs.mm_items[0].second_per_grid_ts = seconds
    assert layout_of(req, 3, Qwen25VL(spatial_merge=2)).seconds_per_frame == (known,)
