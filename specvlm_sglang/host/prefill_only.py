"""A request for no token at all is prefilled and nothing more, as in plain decoding.

SGLang takes ``max_new_tokens: 0`` for a request that only wants its prompt in the cache, or log
probabilities of it, and then samples nothing; with any speculative algorithm it samples a token all
the same, and answers that token's log probability. Beside requests that want tokens it does so in
plain decoding too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function


def install() -> None:
    """Let such requests be prefill-only in this process, the scheduler's; idempotent."""
    contract.require("prefill only")
    replace_function(
        "sglang.srt.managers.schedule_batch", "Req.is_prefill_only", _with_any_algorithm
    )
    replace_function(
        "sglang.srt.managers.scheduler_components.logprob_result_processor",
        "SchedulerLogprobResultProcessor.add_logprob_return_values",
        _of_no_token,
    )


def _with_any_algorithm(original: Callable[..., bool]) -> Callable[..., bool]:
    def is_prefill_only(self: Any) -> bool:
        return bool(self.sampling_params.max_new_tokens == 0)

    return is_prefill_only


def _of_no_token(original: Callable[..., int]) -> Callable[..., int]:
    def add_logprob_return_values(self: Any, i: int, req: Any, *args: Any, **kwargs: Any) -> int:
        passed = original(self, i, req, *args, **kwargs)
        if req.is_prefill_only:
            req.logprob.output_token_logprobs_val.clear()
            req.logprob.output_token_logprobs_idx.clear()
        return passed

    return add_logprob_return_values
