"""One request decoded as a server without speculation does, beside SGLang's own queues.

SGLang's scheduler runs every request of a speculative server through its speculative worker. Here a
request gets a `ScheduleBatch` of its own, whose algorithm is none, and is driven from outside, one
forward pass at a time: SGLang's prefill (chunks, cached prefix), SGLang's decode step on the
target, its sampler, penalizers and grammar. Nothing of drafting and verification is passed, and no
queue, no counter and no client knows of the request.

Only while the scheduler has nothing else to do: the passes run between those of requests, never
beside one, and `PlainDecoding.release` gives everything back at any time between two passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from sglang.srt.managers.overlap_utils import resolve_forward_inputs
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.mem_cache.common import checkpoint_kv_cache, release_kv_cache
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

NO_ROOM = "no room"
NO_GRAMMAR = "grammar not compiled"


class CannotDecodeError(RuntimeError):
    """The request cannot be decoded now; the message is one of this module's reasons.

    It follows from what the host knows, so every tensor-parallel rank raises it at the same place.
    """


class Step(NamedTuple):
    """One decoded token.

    Attributes
    ----------
    token
        What SGLang's sampler chose.
    logits
        ``[vocabulary]``, what it chose from: penalties, grammar and bias are applied.
    """

    token: int
    logits: torch.Tensor


def is_replay(batch_or_req: Any) -> bool:
    """Whether a request, or every request of a batch, is decoded by `PlainDecoding`."""
    reqs = getattr(batch_or_req, "reqs", None)
    if reqs is None:
        return getattr(batch_or_req, "specvlm_replay", False)
    return bool(reqs) and all(is_replay(req) for req in reqs)


class PlainDecoding:
    """Prefills and decodes one request with the target alone.

    Parameters
    ----------
    scheduler
        SGLang's ``Scheduler``, fully idle.
    req
        A new ``Req`` that SGLang has not seen: neither queued nor prefilled.

    Raises
    ------
    CannotDecodeError
        The request wants a grammar that SGLang would have to compile first.
    """

    def __init__(self, scheduler: Any, req: Any) -> None:
        self._scheduler = scheduler
        self._req = req
        self._batch: Any = None
        self._newest: torch.Tensor | None = None
        req.specvlm_replay = True
        # What requests share stays as they left it.
        req.skip_radix_cache_insert = True
        self._add_grammar()

    def _add_grammar(self) -> None:
        manager = self._scheduler.grammar_manager
        if manager.process_req_with_grammar(self._req):
            manager.grammar_queue.remove(self._req)
            self._req.grammar.cancel()
            raise CannotDecodeError(NO_GRAMMAR)

    @property
    def finished(self) -> bool:
        """Whether the request has reached its stop or its length."""
        finished: bool = self._req.finished()
        return finished

    def step(self) -> Step | None:
        """Run one forward pass of the target; None while a chunked prefill is not complete.

        Raises
        ------
        CannotDecodeError
            The KV cache has no room, even without what nobody uses of it.
        """
        req = self._req
        if self._newest is None:
            self._prepare_chunk()
        else:
            self._prepare_token()
        result = self._forward()
        if self._newest is None and req.extend_end < len(req.full_untruncated_fill_ids):
            checkpoint_kv_cache(req, self._scheduler.tree_cache)
            return None
        self._newest = result.next_token_ids.to(torch.int64)
        self._accept(int(self._newest[0]))
        return Step(req.output_ids[-1], result.logits_output.next_token_logits[0])

    def release(self) -> None:
        """Give back the row, the slots and the lock on the cached prefix."""
        req, tree_cache = self._req, self._scheduler.tree_cache
        if req.kv.holds_kv:
            release_kv_cache(req, tree_cache, checkpoint=False)
        else:
            tree_cache.unlock(req.lock)
            req.lock = None

    def _prepare_chunk(self) -> None:
        scheduler, req = self._scheduler, self._req
        if self._batch is None:
            req.init_next_round_input(scheduler.tree_cache)
            req.lock = scheduler.tree_cache.lock(req.last_node)
        req.extend_end = self._chunk_end()
        self._require(req.extend_end - req.prefix_len)
        self._batch = ScheduleBatch.init_new(
            [req],
            scheduler.req_to_token_pool,
            scheduler.token_to_kv_pool_allocator,
            scheduler.tree_cache,
            scheduler.model_config,
            enable_overlap=False,
            spec_algorithm=SpeculativeAlgorithm.NONE,
        )
        self._batch.prepare_for_extend()

    def _chunk_end(self) -> int:
        """Where the next chunk of the prompt ends, as SGLang's prefill cuts it."""
        scheduler, req = self._scheduler, self._req
        length = len(req.full_untruncated_fill_ids)
        size = scheduler.chunked_prefill_size
        if size is None or length - req.prefix_len <= size:
            return length
        step: int = scheduler.truncation_align_size or scheduler.page_size
        ends: int = max((req.prefix_len + size) // step, req.prefix_len // step + 1)
        return ends * step

    def _prepare_token(self) -> None:
        self._require(1)
        self._batch.input_ids = self._newest
        self._batch.prepare_for_decode()

    def _require(self, tokens: int) -> None:
        scheduler = self._scheduler
        free = scheduler.token_to_kv_pool_allocator.available_size()
        # Each end of what is allocated may take a page of its own.
        if free + scheduler.tree_cache.evictable_size() < tokens + 2 * scheduler.page_size:
            raise CannotDecodeError(NO_ROOM)

    def _forward(self) -> Any:
        """Run the target over the batch; the device is done with it on return."""
        scheduler = self._scheduler
        runner = scheduler.tp_worker.model_runner
        with _without_decode_graphs(runner):
            if not scheduler.enable_overlap:
                return self._run()
            # As `Scheduler.run_batch` does, but waiting: there is nothing to overlap with.
            with scheduler.forward_stream_ctx:
                scheduler.forward_stream.wait_stream(scheduler.schedule_stream)
                result = self._run()
            scheduler.forward_stream.synchronize()
        # The scheduler would take this pass's event for that of its own next one.
        runner.shared_read_done_event = None
        return result

    def _run(self) -> Any:
        resolve_forward_inputs(self._batch, self._scheduler.future_map)
        return self._scheduler.tp_worker.forward_batch_generation(self._batch)

    def _accept(self, token: int) -> None:
        """Append the token, in the order in which SGLang's plain decoding settles it."""
        req = self._req
        req.output_ids.append(token)
        req.update_finish_state()
        if req.grammar is not None:
            req.grammar.accept_token(token)
            req.grammar.finished = req.finished()


@contextmanager
def _without_decode_graphs(runner: Any) -> Iterator[None]:
    """A speculative target's graphs verify drafts; one token a request is not what they compute."""
    graphs = runner.decode_cuda_graph_runner
    runner.decode_cuda_graph_runner = None
    try:
        yield
    finally:
        runner.decode_cuda_graph_runner = graphs
