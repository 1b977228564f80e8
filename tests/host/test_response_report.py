"""``meta_info["specvlm"]``: one object in whatever a client gets, through SGLang's own classes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from specvlm_sglang.host import response_report
from specvlm_sglang.host.video_requests import receipt
from specvlm_sglang.report.entries import DRAFT, KEY, TARGET, ResponseReport, align_entries
from tests.support.hooks import unhooked
from tests.support.wire import Wire, wire

FIRST = {"video_tokens": 24, "policy": "specvlm"}
SECOND = {"video_tokens": 24, "policy": "uniform"}
DETAILED = {**FIRST, "detail": {"scores": [0.5]}}
_MANAGER = "sglang.srt.managers.tokenizer_manager"


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    with unhooked(
        (_MANAGER, "TokenizerManager._accumulate_request_meta_info"),
        (_MANAGER, "TokenizerManager._handle_abort_req"),
    ):
        response_report.install(KEY, ResponseReport)
        yield


@pytest.fixture(params=[False, True], ids=["cumulative", "incremental"])
def play(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a story about a `Wire` with either way of streaming."""

    def run(story: Callable[[Wire], Awaitable[None]]) -> None:
        with wire(incremental=request.param) as between:
            asyncio.run(story(between))  # type: ignore[arg-type]

    return run


def shown(chunk: dict[str, Any]) -> Any:
    return chunk["meta_info"]["specvlm"]


def decode(between: Wire, rid: str, *origins: str, tokens: int | None = None) -> None:
    """A verify round: SGLang notes it, then commits its tokens."""
    req = between.reqs[rid]
    if origins:
        align_entries(req)
        req.customized_info["specvlm"].extend(origins)
    req.output_ids.extend([8] * (len(origins) if tokens is None else tokens))


def test_every_chunk_of_a_stream_carries_the_same_object(play: Any) -> None:
    async def story(between: Wire) -> None:
        between.open("a", stream=True)
        between.prefill({"a": FIRST})
        await between.send("a")
        chunks = [await between.chunk("a")]
        decode(between, "a", tokens=3)
        await between.send("a")
        chunks.append(await between.chunk("a"))
        between.finish("a")
        await between.send("a")
        chunks += await between.rest("a")
        assert [shown(chunk) for chunk in chunks] == [FIRST] * 3

    play(story)


def test_chunks_that_nobody_read_in_time_carry_it_together(play: Any) -> None:
    async def story(between: Wire) -> None:
        between.open("a", stream=True)
        between.prefill({"a": DETAILED})
        await between.send("a")
        decode(between, "a", DRAFT, TARGET)
        await between.send("a")
        chunk = await between.chunk("a")
        assert chunk["output_ids"] == [7, 8, 8]
        assert shown(chunk)["detail"] == {"scores": [0.5], "origins": [TARGET, DRAFT, TARGET]}

    play(story)


def test_an_answer_that_is_not_streamed_carries_it(play: Any) -> None:
    async def story(between: Wire) -> None:
        between.open("a", stream=False)
        between.prefill({"a": FIRST})
        decode(between, "a", tokens=2)
        between.finish("a")
        await between.send("a")
        (answer,) = await between.rest("a")
        assert answer["output_ids"] == [7, 8, 8]
        assert shown(answer) == FIRST

    play(story)


@pytest.mark.parametrize("stream", [False, True])
def test_the_last_chunk_shows_what_became_of_the_videos(play: Any, stream: bool) -> None:
    videos = [{"frames": 12, "tokens": 24}]

    async def story(between: Wire) -> None:
        between.open("a", stream=stream)
        receipt.keep(between.request("a"), videos)
        between.prefill({"a": FIRST})
        await between.send("a")
        if stream:
            assert shown(await between.chunk("a")) == FIRST
        decode(between, "a", tokens=3)
        between.finish("a")
        await between.send("a")
        (answer,) = await between.rest("a")
        assert shown(answer) == {**FIRST, "videos": videos}

    play(story)


def test_an_aborted_request_shows_its_videos(play: Any) -> None:
    async def story(between: Wire) -> None:
        between.open("a", stream=True)
        receipt.keep(between.request("a"), [{"frames": 12}])
        between.prefill({"a": FIRST})
        await between.send("a")
        await between.chunk("a")
        between.abort_in_queue("a")
        (last,) = await between.rest("a")
        assert shown(last) == {**FIRST, "videos": [{"frames": 12}]}

    play(story)


def test_with_detail_there_is_one_origin_for_each_token_of_the_chunks_so_far(play: Any) -> None:
    async def story(between: Wire) -> None:
        between.open("a", stream=True)
        between.prefill({"a": DETAILED})
        await between.send("a")
        first = await between.chunk("a")
        decode(between, "a", DRAFT, DRAFT, TARGET)
        await between.send("a")
        second = await between.chunk("a")
        # The answer ends with a token in the middle of a run.
        decode(between, "a", DRAFT, DRAFT, TARGET)
        between.reqs["a"].finished_len = 6
        between.finish("a")
        await between.send("a")
        (last,) = await between.rest("a")
        origins = [TARGET, DRAFT, DRAFT, TARGET, DRAFT, DRAFT]
        assert shown(first)["detail"]["origins"] == origins[:1]
        assert shown(second)["detail"]["origins"] == origins[:4]
        assert shown(last) == {**FIRST, "detail": {"scores": [0.5], "origins": origins}}

    play(story)


@pytest.mark.parametrize("stream", [False, True])
def test_after_a_retraction_it_is_the_last_report(play: Any, stream: bool) -> None:
    async def story(between: Wire) -> None:
        req = between.open("a", stream=stream)
        between.prefill({"a": FIRST})
        decode(between, "a", tokens=4)
        await between.send("a")
        if stream:
            assert shown(await between.chunk("a")) == FIRST
        align_entries(req)
        between.prefill({"a": SECOND})
        decode(between, "a", tokens=2)
        between.finish("a")
        await between.send("a")
        (answer,) = await between.rest("a")
        assert shown(answer) == SECOND

    play(story)


def test_after_a_retraction_origins_still_count_the_tokens(play: Any) -> None:
    async def story(between: Wire) -> None:
        req = between.open("a", stream=True)
        between.prefill({"a": DETAILED})
        await between.send("a")
        # A grammar cut this round's last token.
        decode(between, "a", DRAFT, TARGET, tokens=1)
        align_entries(req)
        between.prefill({"a": {**SECOND, "detail": {"scores": None}}})
        decode(between, "a", TARGET)
        between.finish("a")
        await between.send("a")
        last = (await between.rest("a"))[-1]
        assert shown(last)["policy"] == "uniform"
        assert shown(last)["detail"]["origins"] == [TARGET, DRAFT, TARGET, TARGET]
        assert len(req.output_ids) == 4

    play(story)


def test_a_request_without_a_report_shows_none_beside_one_that_has_it(play: Any) -> None:
    async def story(between: Wire) -> None:
        for rid in "ab":
            between.open(rid, stream=True)
            between.reqs[rid].output_ids.append(7)
            between.finish(rid)
        between.reqs["b"].customized_info = {"specvlm": [FIRST]}
        await between.send("a", "b")
        (without,) = await between.rest("a")
        (with_report,) = await between.rest("b")
        assert "specvlm" not in without["meta_info"]
        assert shown(with_report) == FIRST

    play(story)


def test_an_answer_without_a_token_shows_none(play: Any) -> None:
    async def story(between: Wire) -> None:
        between.open("a", stream=False)
        between.prefill({"a": FIRST})
        between.reqs["a"].finished_len = 0
        between.finish("a")
        await between.send("a")
        (answer,) = await between.rest("a")
        assert answer["output_ids"] == []
        assert "specvlm" not in answer["meta_info"]

    play(story)


def test_a_request_that_is_aborted_before_its_second_prefill_keeps_the_first_report(
    play: Any,
) -> None:
    async def story(between: Wire) -> None:
        for rid in "ab":
            between.open(rid, stream=True)
        between.prefill({"a": FIRST})
        await between.send("a")
        await between.chunk("a")
        for rid in "ab":
            between.abort_in_queue(rid)
        (last,) = await between.rest("a")
        assert last["meta_info"]["finish_reason"]["type"] == "abort"
        assert shown(last) == FIRST
        (never_prefilled,) = await between.rest("b")
        assert "specvlm" not in never_prefilled["meta_info"]

    play(story)


@pytest.mark.parametrize(("incremental", "second"), [(False, [1, 2]), (True, [2])])
def test_what_others_send_along_stays_sglangs_list(incremental: bool, second: list[int]) -> None:
    async def story(between: Wire) -> None:
        between.open("a", stream=True)
        between.prefill({"a": 1}, key="theirs")
        await between.send("a")
        assert (await between.chunk("a"))["meta_info"]["theirs"] == [1]
        between.prefill({"a": 2}, key="theirs")
        await between.send("a")
        assert (await between.chunk("a"))["meta_info"]["theirs"] == second

    with wire(incremental=incremental) as between:
        asyncio.run(story(between))
