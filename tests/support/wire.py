"""What a request leaves behind on its way from SGLang's scheduler to a response, in this process.

The requests, the scheduler's collecting and streaming and the tokenizer manager's answering are
SGLang's own; models, sockets and the detokenizer between the two are left out.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.io_struct import AbortReq, GenerateReqInput
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req
from sglang.srt.managers.scheduler_components.batch_result_processor import (
    SchedulerBatchResultProcessor,
)
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
from sglang.srt.managers.tokenizer_manager import ReqState, TokenizerManager
from sglang.srt.observability.req_time_stats import APIServerReqTimeStats
from sglang.srt.runtime_context import get_context, get_parallel
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.utils.request_logger import RequestLogger


class Wire:
    """Both ends, and what is between them."""

    def __init__(self, manager: Any, streamer: SchedulerOutputStreamer, sent: deque[Any]) -> None:
        self._manager = manager
        self._streamer = streamer
        self._sent = sent
        self._answers: dict[str, Any] = {}
        self.reqs: dict[str, Req] = {}

    def open(self, rid: str, *, stream: bool) -> Req:
        """A request that the server has accepted."""
        asked = GenerateReqInput(rid=rid, input_ids=[1, 2, 3], stream=stream)
        stats = APIServerReqTimeStats()
        state = ReqState([], False, asyncio.Event(), asked, stats)
        self._manager.rid_to_state[rid] = state
        self._answers[rid] = self._manager._wait_one_response(asked)
        req = Req(
            rid, None, array("q", [1, 2, 3]), SamplingParams(max_new_tokens=99), stream=stream
        )
        self.reqs[rid] = req
        return req

    def request(self, rid: str) -> GenerateReqInput:
        """What the client asked, as the server keeps it until the answer's end."""
        found: GenerateReqInput = self._manager.rid_to_state[rid].obj
        return found

    def prefill(self, entries: dict[str, Any], key: str = "specvlm") -> None:
        """A pass completes these requests' prompts; each gets a token and its entry."""
        output = LogitsProcessorOutput(None, customized_info={key: list(entries.values())})
        for index, rid in enumerate(entries):
            req = self.reqs[rid]
            req.output_ids.append(7)
            SchedulerBatchResultProcessor._maybe_collect_customized_info(
                self._streamer, index, req, output
            )

    def finish(self, rid: str) -> None:
        """The request ends with the tokens that it has."""
        req = self.reqs[rid]
        req.finished_reason = FINISH_LENGTH(length=len(req.output_ids))

    async def send(self, *rids: str) -> None:
        """The scheduler streams what these requests have; nobody has read it yet."""
        self._streamer.stream_output([self.reqs[rid] for rid in rids], return_logprob=False)
        while self._sent:
            await self._manager._handle_batch_output(self._sent.popleft())

    def abort_in_queue(self, rid: str) -> None:
        """The scheduler gives up a request that waits."""
        self._manager._handle_abort_req(AbortReq(rid=rid))

    async def chunk(self, rid: str) -> dict[str, Any]:
        """What the client reads next."""
        found: dict[str, Any] = await anext(self._answers[rid])
        return found

    async def rest(self, rid: str) -> Sequence[dict[str, Any]]:
        """All that the client reads from here to the end."""
        return [chunk async for chunk in self._answers[rid]]


class _NoMetrics:
    exporter_enabled = staticmethod(lambda: False)


@contextmanager
def wire(*, incremental: bool = False) -> Iterator[Wire]:
    """A `Wire` of a server with or without ``--incremental-streaming-output``."""
    sent: deque[Any] = deque()
    socket = type("Socket", (), {"send_output": staticmethod(sent.append)})()
    with (
        get_context().override_server_args(incremental_streaming_output=incremental),
        get_parallel().override(dp_rank=None, attn_tp_rank=0),
    ):
        manager = TokenizerManager.__new__(TokenizerManager)
        manager.__dict__.update(
            rid_to_state={},
            incremental_streaming_output=incremental,
            enable_metrics=False,
            dump_requests_folder="",
            crash_dump_folder="",
            enable_lora=False,
            request_logger=RequestLogger(False, 0, "json", []),
            request_metrics_exporter_manager=_NoMetrics(),
        )
        streamer = SchedulerOutputStreamer(
            send_to_detokenizer=socket,
            tree_cache=None,
            server_args=get_context().server_args,
            is_generation=True,
            spec_algorithm=SpeculativeAlgorithm.NONE,
            disaggregation_mode=DisaggregationMode.NULL,
            enable_hicache_storage=lambda: False,
        )
        yield Wire(manager, streamer, sent)
