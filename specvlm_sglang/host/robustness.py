"""What keeps a server up whatever is sent to it, by the process that it is installed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def in_scheduler() -> None:
    """Install it in a scheduler's process; idempotent."""
    from specvlm_sglang.host import (
        internvl_padding,
        memory_release,
        profiling,
        refusals,
        runtime_knobs,
        weight_updates,
    )

    for module in (
        refusals,
        profiling,
        memory_release,
        weight_updates,
        runtime_knobs,
        internvl_padding,
    ):
        module.install_in_scheduler()


def in_tokenizer() -> None:
    """Install it in the process of the tokenizer manager and the HTTP server; idempotent."""
    from specvlm_sglang.host import (
        chat_requests,
        error_text,
        media_inputs,
        profiling,
        refusals,
        token_inputs,
        unforeseen,
        wire,
    )

    for module in (
        refusals,
        profiling,
        media_inputs,
        token_inputs,
        unforeseen,
        wire,
        chat_requests,
        error_text,
    ):
        module.install_in_tokenizer()


INSTALLERS: Mapping[str, Callable[[], None]] = {
    "scheduler": in_scheduler,
    "tokenizer": in_tokenizer,
}
"""By SGLang's names of the roles."""
