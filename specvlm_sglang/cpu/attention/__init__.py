"""The attention backend of the CPU platform, registered with SGLang as ``specvlm_torch``."""

from __future__ import annotations

from specvlm_sglang.cpu.attention.registration import BACKEND_NAME, register

__all__ = ["BACKEND_NAME", "register"]
