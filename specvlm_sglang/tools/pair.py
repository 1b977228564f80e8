"""The pair that is measured: the shipped one with its target enlarged, or one of the user's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from specvlm_sglang.tools import demo
from specvlm_sglang.tools.bench.measure import Turn
from specvlm_sglang.tools.demo import enlarge

_ENLARGED_BYTES = 3 << 30
_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Pair:
    """Target and draft.

    Attributes
    ----------
    target, draft
        Directories or names.
    shipped
        Whether it is the project's own pair.
    note
        What a reader of the numbers must know of it.
    """

    target: str
    draft: str
    shipped: bool
    note: str


def pair(target: str | None, draft: str | None, parameters: int) -> Pair:
    """The user's pair, or the shipped one, its target enlarged to ``parameters`` (0: as it is).

    Raises
    ------
    ValueError
        Only one of the two is given, or is no directory though it looks like one.
    OSError
        The disk is too full for the enlarged target.
    """
    if (target is None) != (draft is None):
        raise ValueError("--target and --draft go together")
    if target is not None and draft is not None:
        for flag, name in (("--target", target), ("--draft", draft)):
            if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
                raise ValueError(f"{flag} {name}: no such directory")
        note = f"target {target}, draft {draft}"
        large, small = os.path.expanduser(target), os.path.expanduser(draft)
        return Pair(large, small, shipped=False, note=note)
    own, small = demo.target_path(), str(demo.draft_path())
    if parameters == 0:
        return Pair(str(own), small, shipped=True, note="the shipped pair as it is")
    folder = enlarge.cache_folder(parameters)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder.parent).free < _ENLARGED_BYTES:
            raise OSError(f"{folder.parent} has less than 3 GB free for the enlarged target")
        disable_progress_bar()
        enlarge.write(own, folder, parameters)
    note = (
        f"the shipped pair, its target enlarged to about {parameters / 1e6:.0f}M parameters that "
        "change no answer: acceptance of the trained pair, cost of the enlarged weights"
    )
    return Pair(str(folder), small, shipped=True, note=note)


class Template:
    """A model's own chat template and tokenizer."""

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


def slot_bytes(draft: str, dtype: str) -> int | None:
    """Bytes that one token takes in the draft's KV cache; None for a draft not on this disk."""
    file = Path(draft) / "config.json"
    if not file.is_file() or dtype not in _ELEMENT_BYTES:
        return None
    config = json.loads(file.read_text())
    config = config.get("text_config", config)
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    width = config.get("num_key_value_heads", heads) * head_dim
    return int(2 * config["num_hidden_layers"] * width * _ELEMENT_BYTES[dtype])
