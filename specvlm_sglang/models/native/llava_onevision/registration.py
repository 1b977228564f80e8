"""Make the model known to SGLang, without importing what a process may never need.

SGLang has a variable for each of its three tables and reads them when it fills the tables. Where
a variable is taken, or its table is filled already, the entry goes into the table directly.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from specvlm_sglang.host import contract
from specvlm_sglang.models.native.llava_onevision import ARCHITECTURE

_PACKAGE = __package__ or "specvlm_sglang.models.native.llava_onevision"


def register() -> None:
    """Model class, multimodal processor, and the fact that it is multimodal; idempotent."""
    _offer(
        "SGLANG_EXTERNAL_MM_MODEL_ARCH",
        ARCHITECTURE,
        "sglang.srt.configs.model_config",
        _call_multimodal,
    )
    _offer("SGLANG_EXTERNAL_MODEL_PACKAGE", _PACKAGE, "sglang.srt.models.registry", _register_model)
    _offer(
        "SGLANG_EXTERNAL_MM_PROCESSOR_PACKAGE",
        _PACKAGE,
        "sglang.srt.managers.multimodal_processor",
        _register_processor,
    )


def _offer(variable: str, value: str, module: str, enter: Callable[[], None]) -> None:
    if os.environ.setdefault(variable, value) != value or module in sys.modules:
        contract.require("llava onevision tables")
        enter()


def _call_multimodal() -> None:
    from sglang.srt.configs.model_config import multimodal_model_archs

    if ARCHITECTURE not in multimodal_model_archs:
        multimodal_model_archs.append(ARCHITECTURE)


def _register_model() -> None:
    from sglang.srt.models.registry import ModelRegistry

    from specvlm_sglang.models.native.llava_onevision.model import (
        LlavaOnevisionForConditionalGeneration,
    )

    ModelRegistry.models[ARCHITECTURE] = LlavaOnevisionForConditionalGeneration


def _register_processor() -> None:
    from sglang.srt.managers.multimodal_processor import PROCESSOR_MAPPING

    from specvlm_sglang.models.native.llava_onevision.model import (
        LlavaOnevisionForConditionalGeneration,
    )
    from specvlm_sglang.models.native.llava_onevision.processor import (
        LlavaOnevisionMultimodalProcessor,
    )

    PROCESSOR_MAPPING[LlavaOnevisionForConditionalGeneration] = LlavaOnevisionMultimodalProcessor
