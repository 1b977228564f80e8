"""Where an answer ends that several accepted tokens reach at once.

SGLang 0.5.23 looks through the tokens that a verify round accepts by kind: for the request's first
stop string anywhere in them, then for its next one, for stop expressions, and last for stop tokens
and the limit. Plain decoding ends at whatever comes first. Here the tokens of requests with stop
strings or expressions are shown to SGLang one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function


def install() -> None:
    """Let answers of this process, the scheduler's, end as in plain decoding; idempotent."""
    contract.require("stops")
    replace_function("sglang.srt.managers.schedule_batch", "Req.update_finish_state", _in_order)


def _in_order(original: Callable[..., None]) -> Callable[..., None]:
    def update_finish_state(self: Any, new_accepted_len: int = 1) -> None:
        sampling = self.sampling_params
        looks_for_text = sampling.stop_strs or sampling.stop_regex_strs
        if new_accepted_len < 2 or not looks_for_text or self.finished() or self.to_finish:
            original(self, new_accepted_len)
        else:
            _one_by_one(original, self, new_accepted_len)

    return update_finish_state


def _one_by_one(original: Callable[..., None], req: Any, count: int) -> None:
    run = req.output_ids[-count:]
    del req.output_ids[-count:]
    # It stands behind the whole run, so only the last token may end by it.
    grammar, req.grammar = req.grammar, None
    seen = 0
    while seen < count and not req.finished():
        req.output_ids.append(run[seen])
        seen += 1
        if seen == count:
            req.grammar = grammar
        original(req, 1)
    req.grammar = grammar
    if req.finished():
        if req.finished_len is None:
            req.finished_len = len(req.output_ids)
        # SGLang counts slots, log probabilities and hidden states by the whole run.
        req.output_ids.extend(run[seen:])
