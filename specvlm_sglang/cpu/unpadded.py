"""Weights keep the sizes of the checkpoint.

For its own CPU kernels SGLang widens configurations whose MLPs are no multiple of 32 per rank, or
whose heads do not divide: SigLIP's 4304 becomes 4320, Qwen2.5-VL's 3420 becomes 3424. Only those
kernels' loaders fill the gap with zeros; here such a checkpoint would not load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function


def install() -> None:
    """Leave configurations as they are in this process; idempotent."""
    contract.require("unpadded weights")
    replace_function(
        "sglang.srt.configs.update_config", "adjust_config_with_unaligned_cpu_tp", _unchanged
    )


def _unchanged(_: Callable[..., Any]) -> Callable[..., Any]:
    def adjust_config_with_unaligned_cpu_tp(
        model_config: Any, load_config: Any, tp_size: int
    ) -> Any:
        return model_config

    return adjust_config_with_unaligned_cpu_tp
