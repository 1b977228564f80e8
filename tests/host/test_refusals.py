"""What a handler raises is answered, and goes no further."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers import io_struct
from sglang.srt.managers.communicator import FanOutCommunicator
from sglang.srt.managers.scheduler import Scheduler
from sglang.utils import TypeBasedDispatcher

from specvlm_sglang.host import refusals
from specvlm_sglang.host.refusals import RefusedError, reason_of, refusal
from tests.support.hooks import unhooked

SCHEDULER = "sglang.srt.managers.scheduler"


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    with unhooked(
        (SCHEDULER, "Scheduler.init_request_dispatcher"),
        (SCHEDULER, "Scheduler.handle_generate_request"),
        (SCHEDULER, "Scheduler.handle_embedding_request"),
        ("sglang.srt.managers.communicator", "FanOutCommunicator.__call__"),
    ):
        refusals.install_in_scheduler()
        refusals.install_in_tokenizer()
        yield


def over_the_wire(message: Any) -> Any:
    return io_struct.msgpack_decode(io_struct.msgpack_encode(message))


REQUESTS = [
    io_struct.UpdateWeightFromDiskReqInput(model_path="x"),
    io_struct.InitWeightsUpdateGroupReqInput(
        master_address="", master_port=1, rank_offset=0, world_size=1, backend="gloo"
    ),
    io_struct.BeginWeightUpdateReqInput(),
    io_struct.ReleaseMemoryOccupationReqInput(),
    io_struct.ResumeMemoryOccupationReqInput(),
    io_struct.ProfileReq(),
    io_struct.OpenSessionReqInput(capacity_of_str_len=1),
    io_struct.SetInternalStateReq(server_args={}),
    io_struct.GetInternalStateReq(),
    io_struct.GetWeightsByNameReqInput(name="x"),
    io_struct.SlowDownReqInput(forward_sleep_time=None),
    io_struct.ClearHiCacheReqInput(),
    io_struct.CheckWeightsReqInput(),
    io_struct.DumperControlReqInput(method="x", body={}),
    io_struct.UnloadLoRAAdapterReqInput(lora_name="x"),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: type(one).__name__)
def test_a_refusal_is_sglangs_own_reply_and_survives_the_wire(request_: Any) -> None:
    reply = over_the_wire(refusal(request_, "because"))
    assert type(reply).__name__.removesuffix("Output") in type(request_).__name__ or isinstance(
        reply, io_struct.LoRAUpdateOutput
    )
    if hasattr(reply, "success"):
        assert reply.success is False
    assert "because" in str(reply)


def test_requests_that_get_no_reply_are_refused_in_silence() -> None:
    assert refusal(io_struct.CloseSessionReqInput(session_id="x"), "because") is None


class Failing:
    """Called, it fails; so does each of its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise KeyError("kv_cache")

    def __getattr__(self, name: str) -> Any:
        return Failing()


class FailingScheduler(Scheduler):
    """SGLang's scheduler with nothing in it, so that all its handlers fail."""

    def __init__(self) -> None:
        self.aborted: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return Failing()

    def send_abort_output(self, abort_req: Any, req: Any) -> None:
        self.aborted.append((abort_req, req))


def test_the_scheduler_answers_for_a_handler_that_fails() -> None:
    scheduler = FailingScheduler()
    scheduler.init_request_dispatcher()
    dispatcher: TypeBasedDispatcher = scheduler._request_dispatcher
    reply = dispatcher(io_struct.UpdateWeightFromDiskReqInput(model_path="x"))
    assert (reply.success, reply.message) == (False, "KeyError: 'kv_cache'")
    assert dispatcher(io_struct.ReleaseMemoryOccupationReqInput()).rid.endswith("'kv_cache'")
    assert dispatcher(io_struct.CloseSessionReqInput(session_id="x")) is None


def test_a_request_that_fails_before_it_waits_gets_a_400() -> None:
    scheduler = FailingScheduler()
    request = SimpleNamespace(rid="r", mm_inputs=None)
    scheduler.handle_generate_request(request)
    ((abort, to),) = scheduler.aborted
    assert to is request
    assert abort.rid == "r"
    assert abort.finished_reason["status_code"] == 400
    assert over_the_wire(abort).finished_reason["message"]


def test_a_refusal_without_a_field_for_its_reason_is_raised_for_the_client() -> None:
    async def ask() -> None:
        asker: FanOutCommunicator[Any] = FanOutCommunicator(lambda sent: None, 1)
        waiting = asyncio.ensure_future(asker(io_struct.ReleaseMemoryOccupationReqInput()))
        await asyncio.sleep(0)
        asker.handle_recv(refusal(io_struct.ReleaseMemoryOccupationReqInput(), "busy"))
        await waiting

    with pytest.raises(RefusedError, match=r"^busy$") as refused:
        asyncio.run(ask())
    assert refused.value.status_code == 400
    assert isinstance(refused.value, ValueError)


def test_other_replies_are_handed_on() -> None:
    async def ask() -> Any:
        asker: FanOutCommunicator[Any] = FanOutCommunicator(lambda sent: None, 1)
        waiting = asyncio.ensure_future(asker(io_struct.ReleaseMemoryOccupationReqInput()))
        await asyncio.sleep(0)
        asker.handle_recv(io_struct.ReleaseMemoryOccupationReqOutput())
        return await waiting

    assert len(asyncio.run(ask())) == 1


def test_a_reason_is_one_short_line() -> None:
    assert reason_of(ValueError("first\nsecond")) == "first"
    assert reason_of(AssertionError()) == "AssertionError"
    assert len(reason_of(ValueError("x" * 9999))) == refusals.LONGEST_REASON
