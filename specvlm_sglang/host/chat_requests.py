"""A chat asks for a tokenizer: a server without one answers 400, and says what it takes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

_MODULE = "sglang.srt.entrypoints.openai.serving_chat"
NO_TOKENIZER = (
    "this server was started with --skip-tokenizer-init, so it has no chat template: send token "
    "ids to /generate, or start it without that flag"
)


def install_in_tokenizer() -> None:
    """Check chats in this process, if it serves them; idempotent."""
    if _MODULE not in sys.modules:
        return
    contract.require("chat requests")
    replace_function(_MODULE, "OpenAIServingChat._validate_request", _with_a_tokenizer)


def _with_a_tokenizer(original: Callable[..., str | None]) -> Callable[..., str | None]:
    def _validate_request(self: Any, request: Any) -> str | None:
        return NO_TOKENIZER if self.tokenizer_manager.tokenizer is None else original(self, request)

    return _validate_request
