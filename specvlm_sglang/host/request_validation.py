"""Refuse a request's bad SpecVLM options where SGLang refuses bad sampling parameters: a 400.

Hidden states are refused there too: SGLang's own words name the flag that would give them, which
SPECVLM refuses in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function
from specvlm_sglang.request import parse_options

NO_HIDDEN_STATES = "verification keeps no hidden states of the tokens that it accepts"


def install() -> None:
    """Check every request in this process, the tokenizer manager's; idempotent."""
    contract.require("requests")
    replace_function(
        "sglang.srt.sampling.sampling_params", "SamplingParams.verify", _with_parsed_options
    )
    replace_function(
        "sglang.srt.managers.tokenizer_manager",
        "TokenizerManager._validate_one_request",
        _without_hidden_states,
    )


def _with_parsed_options(original: Callable[..., None]) -> Callable[..., None]:
    def verify(self: Any, vocab_size: int) -> None:
        original(self, vocab_size)
        parse_options(self.custom_params, SpecVLMConfig.from_environment())

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
