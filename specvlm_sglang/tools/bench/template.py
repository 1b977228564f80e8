"""A model's own chat template and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.tools.bench.measure import Turn
from specvlm_sglang.tools.errors import ToolError


class Template:
    """Renders prompts of a model as its server expects them, and counts their tokens.

    Parameters
    ----------
    model
        Directory or name.

    Raises
    ------
    ToolError
        Neither SGLang nor the model has a template for it.
    """

    def __init__(self, model: str) -> None:
        from sglang.srt.parser.conversation import get_conv_template_by_model_path
        from transformers import AutoProcessor, AutoTokenizer

        contract.require("chat templates")
        # As SGLang chooses: a template of its own, if it has one, before the model's.
        self._conversation: str | None = get_conv_template_by_model_path(model)
        self._processor: Any = None
        if self._conversation is None:
            self._processor = AutoProcessor.from_pretrained(model)
            if not getattr(self._processor, "chat_template", None):
                raise ToolError(f"--target {model} has no chat template, and SGLang none for it")
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)

    def render(self, turns: Sequence[Turn]) -> str:
        """A prompt with one video before the first question; the last turn has no answer yet."""
        if self._conversation:
            return _as_sglang_renders(self._conversation, turns)
        messages: list[dict[str, Any]] = []
        for question, answer in turns:
            content = [{"type": "text", "text": question}]
            if not messages:
                content.insert(0, {"type": "video"})
            messages.append({"role": "user", "content": content})
            if answer is not None:
                said = [{"type": "text", "text": answer}]
                messages.append({"role": "assistant", "content": said})
        prompt: str = self._processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return prompt

    def count(self, text: str) -> int:
        """Tokens of ``text``."""
        return len(self._tokenizer(text)["input_ids"])


def _as_sglang_renders(name: str, turns: Sequence[Turn]) -> str:
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest
    from sglang.srt.parser.conversation import generate_chat_conv

    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if not messages:
            # Where the video is; it is sent beside the prompt.
            content.insert(0, {"type": "video_url", "video_url": {"url": "video"}})
        messages.append({"role": "user", "content": content})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    request = ChatCompletionRequest(model=name, messages=messages)
    return str(generate_chat_conv(request, name).get_prompt())
