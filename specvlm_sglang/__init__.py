"""SpecVLM for SGLang: lossless speculative decoding for video LLMs with a pruned draft."""

__version__ = "0.1.0"
