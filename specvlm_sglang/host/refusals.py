"""An error in answering one request ends that request, not the scheduler.

SGLang's scheduler calls the handler of each message that it receives. What a handler raises ends
the scheduler, and the server with it. Here it becomes the answer: ``success: false`` with the
reason, or a request's 400.
"""

from __future__ import annotations

import logging
import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import HTTPException
from sglang.srt.managers import io_struct

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

logger = logging.getLogger(__name__)

LONGEST_REASON = 400
_BAD_REQUEST = 400
_SCHEDULER = "sglang.srt.managers.scheduler"
# Some replies have no field for a reason. Every message has a request's id, and no reply to a
# control request uses it.
_MARK = "specvlm refused: "
_REASONS = ("message", "error_message", "error")


class RefusedError(HTTPException, ValueError):
    """A request that the server refuses: a 400 with one sentence, whoever handles it."""

    def __init__(self, reason: str) -> None:
        HTTPException.__init__(self, status_code=_BAD_REQUEST, detail=reason)

    def __str__(self) -> str:
        return str(self.detail)


def install_in_scheduler() -> None:
    """Answer errors of handlers in this process, the scheduler's; idempotent."""
    contract.require("refusals")
    replace_function(_SCHEDULER, "Scheduler.init_request_dispatcher", _answering_errors)
    replace_function(_SCHEDULER, "Scheduler.handle_generate_request", _ending_the_request)
    replace_function(_SCHEDULER, "Scheduler.handle_embedding_request", _ending_the_request)


def install_in_tokenizer() -> None:
    """Raise `RefusedError` where the scheduler refused, in this process; idempotent."""
    contract.require("refusals")
    replace_function(
        "sglang.srt.managers.communicator", "FanOutCommunicator.__call__", _raising_refusals
    )


def reason_of(error: BaseException | str) -> str:
    """The first line of an error's message; with its kind where that alone says little."""
    said = str(error).strip() or type(error).__name__
    if isinstance(error, LookupError | TypeError | AttributeError):
        said = f"{type(error).__name__}: {said}"
    line = said.splitlines()[0]
    return line if len(line) <= LONGEST_REASON else f"{line[: LONGEST_REASON - 3]}..."


def refusal(request: Any, reason: str) -> Any:
    """SGLang's reply to a control ``request``, with ``reason``; None where it sends none."""
    name = type(request).__name__.removesuffix("Input")
    reply = getattr(io_struct, f"{name}Output", None)
    if reply is None:
        return None
    kinds = typing.get_type_hints(reply)
    values: dict[str, Any] = {"rid": f"{_MARK}{reason}"}
    for field in msgspec.structs.fields(reply):
        if field.name in _REASONS:
            values[field.name] = reason
        elif field.name == "success":
            values[field.name] = False
        elif field.required:
            values[field.name] = _nothing(kinds[field.name])
    return reply(**values)


def _nothing(kind: Any) -> Any:
    """The empty value of a field's type."""
    origin = typing.get_origin(kind) or kind
    return None if origin in (typing.Union, types.UnionType) else origin()


def _answering_errors(original: Callable[..., None]) -> Callable[..., None]:
    def init_request_dispatcher(self: Any) -> None:
        original(self)
        handlers = self._request_dispatcher._mapping
        for kind, handle in handlers.items():
            handlers[kind] = _answered(handle)

    return init_request_dispatcher


def _answered(handle: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def handle_or_refuse(request: Any) -> Any:
        try:
            return handle(request)
        except Exception as error:
            logger.exception("%s was refused", type(request).__name__)
            return refusal(request, reason_of(error))

    return handle_or_refuse


def _ending_the_request(original: Callable[..., None]) -> Callable[..., None]:
    def handle(self: Any, recv_req: Any, **kwargs: Any) -> None:
        try:
            original(self, recv_req, **kwargs)
        except Exception as error:
            logger.exception("request %s was refused", recv_req.rid)
            finished = {
                "type": "abort",
                "message": reason_of(error),
                "status_code": _BAD_REQUEST,
                "err_type": "BadRequestError",
            }
            abort = io_struct.AbortReq(rid=recv_req.rid, finished_reason=finished)
            self.send_abort_output(abort, recv_req)

    return handle


def _raising_refusals(original: Callable[..., Any]) -> Callable[..., Any]:
    async def __call__(self: Any, obj: Any) -> Any:
        replies = await original(self, obj)
        for reply in replies:
            said = getattr(reply, "rid", None) or ""
            if said.startswith(_MARK) and not hasattr(reply, "success"):
                raise RefusedError(said.removeprefix(_MARK))
        return replies

    return __call__
