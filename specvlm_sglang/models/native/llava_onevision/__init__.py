"""LLaVA-OneVision's Hugging Face checkpoints (`llava-hf/llava-onevision-*`), native in SGLang.

SGLang 0.5.23 has no class for them. `registration` makes this one known through SGLang's seams for
external models, so that plain and speculative serving find it like any other.
"""

from __future__ import annotations

ARCHITECTURE = "LlavaOnevisionForConditionalGeneration"
"""Name in a checkpoint's ``config.architectures``."""
