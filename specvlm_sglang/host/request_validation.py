"""Refuse a request's bad options where SGLang refuses bad sampling parameters: a 400.

Hidden states are refused there too: SGLang's own words name the flag that would give them, which
SPECVLM refuses in turn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

NO_HIDDEN_STATES = "verification keeps no hidden states of the tokens that it accepts"


def install(check: Callable[[Any], object]) -> None:
    """Check every request in this process, the tokenizer manager's; idempotent.

    Parameters
    ----------
    check
        Gets a request's ``custom_params`` and raises ``ValueError`` where they are bad.
    """
    contract.require("requests")
    replace_function(
        "sglang.srt.sampling.sampling_params",
        "SamplingParams.verify",
        functools.partial(_with_options, check),
    )
    replace_function(
        "sglang.srt.managers.tokenizer_manager",
        "TokenizerManager._validate_one_request",
        _without_hidden_states,
    )


def _with_options(
    check: Callable[[Any], object], original: Callable[..., None]
) -> Callable[..., None]:
    def verify(self: Any, vocab_size: int) -> None:
        original(self, vocab_size)
        check(self.custom_params)

    return verify


def _without_hidden_states(original: Callable[..., None]) -> Callable[..., None]:
    def _validate_one_request(self: Any, obj: Any, input_ids: Any) -> None:
        asked = getattr(obj, "return_hidden_states", False)
        if asked:
            raise ValueError(
                f"return_hidden_states={asked!r} does not work with SPECVLM: {NO_HIDDEN_STATES}"
            )
        original(self, obj, input_ids)

    return _validate_one_request
