"""The checkpoint's own chat template in SGLang's chat endpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

logger = logging.getLogger(__name__)

_PROBE = "specvlm"
# Jinja, put before a template: a message that is one string becomes one part of text.
_PARTS_FROM_STRINGS = (
    "{%- set ns = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}"
    "{%- set part = {'type': 'text', 'text': message['content']} -%}"
    "{%- set ns.messages = ns.messages + [dict(message, content=[part])] -%}"
    "{%- else -%}"
    "{%- set ns.messages = ns.messages + [message] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = ns.messages %}"
)


def accept_plain_strings(processor: Any) -> None:
    """Make the template of a Hugging Face processor render messages that are plain strings.

    The published templates look for parts in every message, find none in a string and render
    nothing: a question sent as a string, as most OpenAI clients do, would be lost.
    """
    template = processor.chat_template
    if not isinstance(template, str):
        return
    messages = [{"role": "user", "content": _PROBE}]
    if _PROBE not in processor.apply_chat_template(messages, tokenize=False):
        processor.chat_template = _PARTS_FROM_STRINGS + template


def use_checkpoint_template(model_path: str) -> None:
    """Keep SGLang from guessing a chat template from the model's path; idempotent.

    For paths with ``llava-onevision-qwen2`` it would take ``chatml-llava``, which has another
    system message and other line breaks than the checkpoint's template. ``--chat-template
    chatml-llava`` still selects it.
    """
    contract.require("llava onevision chat")
    _with_own_template.add(model_path)
    replace_function(
        "sglang.srt.parser.template_manager",
        "TemplateManager.guess_chat_template_from_model_path",
        _without_guess,
    )


_with_own_template: set[str] = set()


def _without_guess(original: Callable[..., None]) -> Callable[..., None]:
    def guess_chat_template_from_model_path(self: Any, model_path: str) -> None:
        if model_path not in _with_own_template:
            original(self, model_path)

    return guess_chat_template_from_model_path
