"""A session's next turn begins where the answer ended; a streaming session keeps no draft."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.io_struct import SessionParams, TokenizedGenerateReqInput
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.runtime_context import get_context
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.session.session_controller import Session
from sglang.srt.session.streaming_session import StreamingSession
from sglang.srt.utils.hf_transformers.common import attach_additional_stop_token_ids

from specvlm_sglang.host import sessions
from tests.support.hooks import unhooked
from tests.support.tokenizer import build_tokenizer

PROMPT = [5, 6, 7]
NEXT = [9, 9]
EOS = 3
ANSWER = "red square moves to the left"


class Worker:
    """The two things that sessions ask of it."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int]] = []
        self.freed: list[int] = []

        self.requests = SimpleNamespace(of=self._state)
        self.draft_worker = SimpleNamespace(kv=SimpleNamespace(free=self.freed.append))

    def _state(self, req: Req) -> SimpleNamespace:
        return SimpleNamespace(begin_rows_at=lambda start: self.begun.append((req.rid, start)))


@pytest.fixture(autouse=True)
def worker() -> Iterator[Worker]:
    streaming = "sglang.srt.session.streaming_session"
    with unhooked(
        ("sglang.srt.session.session_controller", "Session.create_req"),
        (streaming, "StreamingSession.try_match_prefix"),
        (streaming, "StreamingSession.try_cache_finished_req"),
    ):
        found = Worker()
        sessions.install(found)
        yield found


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    found = build_tokenizer(448)
    attach_additional_stop_token_ids(found)
    return found


def asked(
    name: str, tokens: list[int], *, sampling: dict[str, Any], tokenizer: Any = None, **params: Any
) -> Any:
    parameters = SamplingParams(**{"max_new_tokens": 40, **sampling})
    parameters.normalize(tokenizer)
    return TokenizedGenerateReqInput(
        rid=name,
        input_text=None,
        input_ids=array("q", tokens),
        input_embeds=None,
        mm_inputs=None,
        token_type_ids=None,
        sampling_params=parameters,
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=False,
        session_params=SessionParams(id="s", **params),
    )


Take = Callable[[Req, list[int]], None]


def one_by_one(req: Req, tokens: list[int]) -> None:
    """Plain decoding."""
    for token in tokens:
        req.output_ids.append(token)
        req.update_finish_state()
        if req.finished():
            return


def in_runs(req: Req, tokens: list[int]) -> None:
    """The prefill's token, then runs of four that the target accepted."""
    req.output_ids.append(tokens[0])
    req.update_finish_state()
    for start in range(1, len(tokens), 4):
        if req.finished():
            return
        run = tokens[start : start + 4]
        req.output_ids.extend(run)
        req.update_finish_state(len(run))


STOPS: dict[str, Callable[[Any, list[int]], dict[str, Any]]] = {
    "stop token": lambda tokenizer, answer: {"stop_token_ids": [answer[2]]},
    "stop string": lambda tokenizer, answer: {"stop": [tokenizer.decode(answer[2:4])]},
    "length": lambda tokenizer, answer: {"max_new_tokens": 3},
    "end token": lambda tokenizer, answer: {},
}


def first_turn(tokenizer: Any, stop: str, take: Take, *, streaming: bool = False) -> Any:
    answer = tokenizer.encode(ANSWER)
    if stop == "end token":
        answer[2] = EOS
    sampling = STOPS[stop](tokenizer, answer)
    request = asked("first", PROMPT, sampling=sampling, tokenizer=tokenizer)
    session = Session(10_000, "s", streaming=streaming)
    req = session.create_req(request, tokenizer, 1_000, {EOS})
    req.refresh_fill_ids()
    take(req, answer)
    assert req.finished()
    if streaming:
        session.finish_req(req)
    return session, req


def second_turn(session: Session, **params: Any) -> tuple[list[int], list[int]]:
    req = session.create_req(asked("second", NEXT, sampling={}, **params), None, 1_000)
    assert not req.finished()
    return list(req.origin_input_ids), list(req.origin_input_ids_unpadded)


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize(
    "params", [{}, {"offset": 5}, {"offset": -1}, {"drop_previous_output": True}, {"replace": True}]
)
def test_the_next_turn_has_the_prompt_of_plain_decoding(
    tokenizer: Any, stop: str, params: dict[str, Any]
) -> None:
    plain, _ = first_turn(tokenizer, stop, one_by_one)
    session, req = first_turn(tokenizer, stop, in_runs)
    ended = list(req.output_ids_through_stop)
    # Otherwise there was nothing to leave out.
    assert len(req.output_ids) > len(ended)
    got = second_turn(session, rid="first", **params)
    assert got == second_turn(plain, rid="first", **params)
    if not params:
        assert got[0] == [*PROMPT, *ended, *NEXT]


@pytest.mark.parametrize("stop", STOPS)
def test_the_next_turn_of_a_streaming_session_has_the_prompt_of_plain_decoding(
    tokenizer: Any, stop: str
) -> None:
    plain, _ = first_turn(tokenizer, stop, one_by_one, streaming=True)
    session, req = first_turn(tokenizer, stop, in_runs, streaming=True)
    expected = [*PROMPT, *req.output_ids_through_stop, *NEXT]
    for _ in range(2):  # The first is aborted: the second takes its tokens back.
        assert second_turn(session)[0] == second_turn(plain)[0] == expected
        session.abort_req()
        plain.abort_req()


def test_a_branch_that_starts_at_an_earlier_turn_is_cut_there_too(tokenizer: Any) -> None:
    session, first = first_turn(tokenizer, "stop token", in_runs)
    ended = list(first.output_ids_through_stop)
    second = session.create_req(asked("a", NEXT, sampling={}, rid="first"), tokenizer, 1_000)
    one_by_one(second, [8] * 40)
    assert second_turn(session, rid="first")[0] == [*PROMPT, *ended, *NEXT]
    assert second_turn(session, rid="a")[0] == [*PROMPT, *ended, *NEXT, *[8] * 40, *NEXT]


def test_an_aborted_turn_keeps_the_tokens_that_were_sent(tokenizer: Any) -> None:
    session = Session(10_000, "s")
    req = session.create_req(asked("first", PROMPT, sampling={}), tokenizer, 1_000)
    req.output_ids.extend([11, 12, 13])
    req.to_finish = FINISH_ABORT()
    req.update_finish_state(2)
    assert second_turn(session, rid="first")[0] == [*PROMPT, 11, 12, 13, *NEXT]


def test_a_turn_that_still_runs_is_left_alone(tokenizer: Any) -> None:
    session = Session(10_000, "s")
    running = session.create_req(asked("first", PROMPT, sampling={}), tokenizer, 1_000)
    running.output_ids.extend([11, 12])
    session.create_req(asked("other", NEXT, sampling={}), tokenizer, 1_000)
    assert list(running.output_ids) == [11, 12]


def test_what_the_radix_cache_keeps_of_a_turn_ends_at_its_stop_too(tokenizer: Any) -> None:
    _, req = first_turn(tokenizer, "stop token", in_runs)
    kept = []
    tree = SimpleNamespace(
        claim_kv_row=lambda req: False,
        checkpoint=lambda req, up_to: kept.extend(req.full_untruncated_fill_ids[:up_to]),
        free_kv_row=lambda kv, spans: None,
        unlock=lambda lock: None,
        on_release=lambda req, checkpointed: None,
        supports_mamba=lambda: False,
        token_to_kv_pool_allocator=SimpleNamespace(page_size=1),
        req_to_token_pool=SimpleNamespace(free=lambda req: None),
    )
    req.kv.req_pool_idx = 1
    req.kv.kv_committed_len = req.kv.kv_allocated_len = len(PROMPT) + len(req.output_ids)
    with get_context().override_server_args(speculative_algorithm="STANDALONE"):
        release_kv_cache(req, tree, checkpoint=True)
    assert kept == [*PROMPT, *req.output_ids_through_stop]


def streaming_turn(tokenizer: Any) -> tuple[StreamingSession, Session, Req]:
    """A first turn that has given its prompt to the radix tree, and a row to its session."""
    cache = SimpleNamespace(page_size=1, free_kv_row=lambda kv, spans: None)
    slots = StreamingSession(cache)
    session, req = first_turn(tokenizer, "stop token", in_runs, streaming=True)
    req.kv.req_pool_idx = 5
    req.kv.kv_committed_len = req.kv.kv_allocated_len = len(PROMPT) + len(req.output_ids)
    slots.take(req)
    req.kv.cache_protected_len = len(PROMPT)
    return slots, session, req


def test_a_finished_turn_of_a_streaming_session_gives_the_drafts_row_back(
    tokenizer: Any, worker: Worker
) -> None:
    slots, _, req = streaming_turn(tokenizer)
    assert slots.try_cache_finished_req(req)
    assert worker.freed == [5]
    assert slots.slots["s"].kv.req_pool_idx == 5


def test_a_row_that_no_session_keeps_is_freed_with_its_request(
    tokenizer: Any, worker: Worker
) -> None:
    slots, _, req = streaming_turn(tokenizer)
    req.session = None
    assert not slots.try_cache_finished_req(req)
    assert worker.freed == []


@pytest.mark.parametrize(("cap", "prefix"), [(1, len(PROMPT)), (5, 5)])
def test_a_streaming_turn_computes_no_row_again_that_others_share(
    tokenizer: Any, worker: Worker, cap: int, prefix: int
) -> None:
    slots, session, first = streaming_turn(tokenizer)
    slots.try_cache_finished_req(first)
    second = session.create_req(asked("second", NEXT, sampling={}), None, 1_000)
    key = RadixKey(second.origin_input_ids, limit=cap)
    match = slots.try_match_prefix(MatchPrefixParams(key=key, req=second))
    assert match is not None
    assert match.device_prefix_len == prefix
    assert worker.begun == [("second", prefix)]


def test_a_request_of_no_streaming_session_is_matched_as_always(
    tokenizer: Any, worker: Worker
) -> None:
    slots, _, _ = streaming_turn(tokenizer)
    _, other = first_turn(tokenizer, "length", one_by_one)
    key = RadixKey(other.origin_input_ids, limit=1)
    assert slots.try_match_prefix(MatchPrefixParams(key=key, req=other)) is None
    assert (key.limit, worker.begun) == (1, [])
