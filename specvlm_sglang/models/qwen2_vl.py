"""Qwen2-VL: as Qwen2.5-VL, without times in its positions."""

from __future__ import annotations

from specvlm_sglang.models.qwen2_5_vl import Qwen25VL


class Qwen2VL(Qwen25VL):
    """Adapter for ``Qwen2VLForConditionalGeneration``, QVQ among them."""

    name = "Qwen2-VL"
    architectures = ("Qwen2VLForConditionalGeneration",)
