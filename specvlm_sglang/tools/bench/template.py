"""A model's own chat template and tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specvlm_sglang.tools.bench.measure import Turn


class Template:
    """Renders prompts of a model as its server expects them, and counts their tokens."""

    def __init__(self, model: str) -> None:
        from transformers import AutoProcessor

        self._processor: Any = AutoProcessor.from_pretrained(model)

    def render(self, turns: Sequence[Turn]) -> str:
        """A prompt with one video before the first question; the last turn has no answer yet."""
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
        return len(self._processor.tokenizer(text)["input_ids"])
