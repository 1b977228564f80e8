"""``meta_info["specvlm"]`` of a response is one object, streaming or not.

What belongs to a request travels token by token from SGLang's scheduler, and its tokenizer manager
collects each key of that into a list, which streaming slices. Ours it shall not collect: the
entries that have come are kept beside SGLang's, and each response shows what they add up to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function
from specvlm_sglang.report.detail import KEY, ResponseReport

_MODULE = "sglang.srt.managers.tokenizer_manager"
_HELD_AS = "specvlm_report"


def install() -> None:
    """Fold the entries of every response in this process, the tokenizer manager's; idempotent."""
    contract.require("responses")
    replace_function(_MODULE, "TokenizerManager._accumulate_request_meta_info", _fold)
    replace_function(_MODULE, "TokenizerManager._handle_abort_req", _with_report)


def _fold(original: Callable[..., None]) -> Callable[..., None]:
    def _accumulate_request_meta_info(
        meta_info: dict[str, Any], state: Any, key: str, values: list[Any]
    ) -> None:
        if key != KEY:
            original(meta_info, state, key, values)
            return
        if not hasattr(state, _HELD_AS):
            setattr(state, _HELD_AS, ResponseReport())
        getattr(state, _HELD_AS).add(values)
        _show(meta_info, state)

    return _accumulate_request_meta_info


def _with_report(original: Callable[..., None]) -> Callable[..., None]:
    def _handle_abort_req(self: Any, recv_obj: Any) -> None:
        # Of a request that waited to be prefilled again; SGLang builds this message from scratch.
        state = self.rid_to_state.get(recv_obj.rid)
        original(self, recv_obj)
        if state is not None and state.finished and hasattr(state, _HELD_AS):
            _show(state.out_list[-1]["meta_info"], state)

    return _handle_abort_req


def _show(meta_info: dict[str, Any], state: Any) -> None:
    report = getattr(state, _HELD_AS).report()
    if report is not None:
        meta_info[KEY] = report
