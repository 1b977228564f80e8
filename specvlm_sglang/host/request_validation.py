"""Refuse a request's bad SpecVLM options where SGLang refuses bad sampling parameters: a 400."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function
from specvlm_sglang.request_options import parse_options


def install() -> None:
    """Check ``custom_params.specvlm`` of every request in this process; idempotent."""
    contract.require("requests")

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def verify(self: Any, vocab_size: int) -> None:
            original(self, vocab_size)
            parse_options(self.custom_params, SpecVLMConfig.from_environment())

        return verify

    replace_function("sglang.srt.sampling.sampling_params", "SamplingParams.verify", make)
