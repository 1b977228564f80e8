"""What a request gives and asks in tokens fits the model: a forward pass would fail on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

EMPTY = "the prompt is empty: text or input_ids must give at least one token"


def install_in_tokenizer() -> None:
    """Check requests in this process, the tokenizer manager's; idempotent."""
    contract.require("token inputs")
    replace_function(
        "sglang.srt.managers.tokenizer_manager", "TokenizerManager._validate_one_request", _fitting
    )


def check_ids(input_ids: Sequence[Any], vocab_size: int) -> None:
    """Raise ``ValueError`` for the first of ``input_ids`` that is no token's id, or for none."""
    if not input_ids:
        raise ValueError(EMPTY)
    for place, token in enumerate(input_ids):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise ValueError(
                f"input_ids[{place}]={str(token)[:40]} must be an integer from 0 to "
                f"{vocab_size - 1}"
            )


def check_embeds(rows: Any, hidden_size: int) -> None:
    """Raise ``ValueError`` unless ``rows`` are ``[tokens, hidden]`` numbers, of some token."""
    if not rows:
        raise ValueError("input_embeds is empty: it needs a row for each token")
    for place, row in enumerate(rows):
        if not isinstance(row, list | tuple) or len(row) != hidden_size:
            size = len(row) if isinstance(row, list | tuple) else "no list"
            raise ValueError(f"input_embeds[{place}] has {size} numbers, not {hidden_size}")


def check_top_logprobs(number: Any, vocab_size: int) -> None:
    """Raise ``ValueError`` unless a token can have so many most likely ones."""
    if number is not None and (not isinstance(number, int) or not 0 <= number <= vocab_size):
        raise ValueError(f"top_logprobs_num={number} must be an integer from 0 to {vocab_size}")


def _fitting(original: Callable[..., None]) -> Callable[..., None]:
    def _validate_one_request(self: Any, obj: Any, input_ids: Any) -> None:
        embeds = getattr(obj, "input_embeds", None)
        if embeds is not None:
            check_embeds(embeds, self.model_config.hidden_size)
        elif input_ids is not None:
            check_ids(input_ids, self.model_config.vocab_size)
        check_top_logprobs(getattr(obj, "top_logprobs_num", None), self.model_config.vocab_size)
        original(self, obj, input_ids)

    return _validate_one_request
