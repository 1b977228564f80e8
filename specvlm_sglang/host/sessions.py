"""What SGLang's sessions remember of a turn, seen from a verification that accepts ahead.

A verify round may accept tokens behind the one that ends an answer. SGLang shows and caches the
answer up to that token; a session's next turn it builds from all that the request holds.

A streaming session keeps the request's row of the target's cache from turn to turn. The draft's row
is prefilled anew in each turn, so between turns it would only hold slots. And what the session's
first turn has given to the radix tree cannot be computed again: the query rows begin behind it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

_STREAMING = "sglang.srt.session.streaming_session"
_worker: weakref.ref[Any] | None = None


def install(worker: Any) -> None:
    """Hook the sessions of this process, ``worker``'s scheduler; idempotent."""
    global _worker
    contract.require("sessions")
    _worker = weakref.ref(worker)
    replace_function("sglang.srt.session.session_controller", "Session.create_req", _from_answers)
    replace_function(_STREAMING, "StreamingSession.try_match_prefix", _behind_what_is_shared)
    replace_function(_STREAMING, "StreamingSession.try_cache_finished_req", _without_draft)


def _from_answers(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_req(self: Any, *args: Any, **kwargs: Any) -> Any:
        for node in self.req_nodes.values():
            _end_at_stop(node.req)
        return original(self, *args, **kwargs)

    return create_req


def _end_at_stop(req: Any) -> None:
    if req.finished():
        req.output_ids = req.output_ids_through_stop


def _behind_what_is_shared(original: Callable[..., Any]) -> Callable[..., Any]:
    def try_match_prefix(self: Any, params: Any) -> Any:
        slot = self.find_active_slot(params.req)
        if slot is not None and params.key.limit is not None:
            params.key.limit = max(params.key.limit, slot.kv.cache_protected_len)
        match = original(self, params)
        worker = _worker() if _worker is not None else None
        if match is not None and worker is not None:
            worker.requests.of(params.req).begin_rows_at(match.device_prefix_len)
        return match

    return try_match_prefix


def _without_draft(original: Callable[..., bool]) -> Callable[..., bool]:
    def try_cache_finished_req(self: Any, req: Any) -> bool:
        row = req.kv.req_pool_idx
        is_kept = original(self, req)
        worker = _worker() if _worker is not None else None
        if is_kept and worker is not None:
            worker.draft_worker.kv.free(row)
        return is_kept

    return try_cache_finished_req
