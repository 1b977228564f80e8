"""``meta_info["specvlm"]`` of a response is one object, streaming or not.

What belongs to a request travels token by token from SGLang's scheduler, and its tokenizer manager
collects each key of that into a list, which streaming slices. Ours it shall not collect: the
entries that have come are kept beside SGLang's, and each response shows what they add up to. The
last one also shows what became of the request's videos, which this process knows.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function
from specvlm_sglang.host.video_requests import receipt

logger = logging.getLogger(__name__)

_MODULE = "sglang.srt.managers.tokenizer_manager"
_HELD_AS = "specvlm_report"


class Report(Protocol):
    """What the entries of one response add up to."""

    def add(self, entries: list[Any]) -> None:
        """More of them have come."""

    def report(self, *, is_last: bool) -> Any:
        """Return what a response shows, and whether it is the last; None for nothing."""


def install(key: str, new_report: Callable[[], Report]) -> None:
    """Fold the entries of every response in this process, the tokenizer manager's; idempotent.

    Parameters
    ----------
    key
        Of our entries, and of the report in ``meta_info``.
    new_report
        Begins the report of a response.
    """
    contract.require("responses")
    replace_function(
        _MODULE,
        "TokenizerManager._accumulate_request_meta_info",
        functools.partial(_fold, key, new_report),
    )
    replace_function(
        _MODULE, "TokenizerManager._handle_abort_req", functools.partial(_with_report, key)
    )


def _fold(
    ours: str, new_report: Callable[[], Report], original: Callable[..., None]
) -> Callable[..., None]:
    def _accumulate_request_meta_info(
        meta_info: dict[str, Any], state: Any, key: str, values: list[Any]
    ) -> None:
        if key != ours:
            original(meta_info, state, key, values)
            return
        if not hasattr(state, _HELD_AS):
            setattr(state, _HELD_AS, new_report())
        with _alone(state):
            getattr(state, _HELD_AS).add(values)
            _show(meta_info, state, ours)

    return _accumulate_request_meta_info


def _with_report(key: str, original: Callable[..., None]) -> Callable[..., None]:
    def _handle_abort_req(self: Any, recv_obj: Any) -> None:
        # Of a request that waited to be prefilled again; SGLang builds this message from scratch.
        state = self.rid_to_state.get(recv_obj.rid)
        original(self, recv_obj)
        if state is not None and state.finished and hasattr(state, _HELD_AS):
            with _alone(state):
                _show(state.out_list[-1]["meta_info"], state, key)

    return _handle_abort_req


@contextmanager
def _alone(state: Any) -> Iterator[None]:
    """What fails here costs a response its report: SGLang's loop answers everybody."""
    try:
        yield
    except Exception as error:
        rid = getattr(state.obj, "rid", None)
        logger.warning("SPECVLM: the response to %s has no report: %r", rid, error)


def _show(meta_info: dict[str, Any], state: Any, key: str) -> None:
    is_last = meta_info.get("finish_reason") is not None
    report = getattr(state, _HELD_AS).report(is_last=is_last)
    if report is None:
        return
    videos = receipt.kept(state.obj)
    # Once: a stream's other chunks repeat the report, and a long video has many frames.
    if videos and isinstance(report, dict) and is_last:
        report = {**report, receipt.FIELD: videos}
    meta_info[key] = report
