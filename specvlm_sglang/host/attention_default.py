"""What SPECVLM runs on where the user named no attention backend.

SGLang picks by GPU and by a flag that it resolves later, so one server would get FA3, another
TRT-LLM's kernels and a third FlashInfer. FA3 stays for chains, which it verifies without a mask and
without lengths on the host. Otherwise FlashInfer, which alone serves chains and trees, every page
size and every generation of GPUs. None of them computes in float32; Triton's kernels do.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

logger = logging.getLogger(__name__)
_REPLACED = ("fa3", "fa4", "trtllm_mha")
_HOST_PLANS = (
    "SGLANG_OPT_FLASHINFER_DRAFT_HOST_INDPTR",
    "SGLANG_OPT_FLASHINFER_VERIFY_HOST_PLAN",
)
"""Off in SGLang. Its host lengths are exact under SPECVLM, so no round needs to wait for a copy."""
_FLOAT32 = ("float", "float32")


def install(algorithm: str) -> None:
    """Change SGLang's default for ``algorithm`` only, in this process; idempotent."""
    contract.require("attention default")
    replace_function(
        "sglang.srt.arg_groups.model_override_base",
        "get_default_attn_backend",
        functools.partial(_prefer_flashinfer, algorithm),
    )


def is_float32_on_gpu(server_args: Any) -> bool:
    """Whether the models are to be computed in float32 on CUDA (``--dtype``)."""
    return server_args.device == "cuda" and server_args.dtype in _FLOAT32


def kernels_are_there() -> bool:
    """Whether FlashInfer has compiled kernels, or finds a compiler where it looks for one."""
    packages = ("flashinfer_cubin", "flashinfer_jit_cache")
    if any(importlib.util.find_spec(name) for name in packages):
        return True
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    compilers = [Path(home, "bin", "nvcc") for home in homes if home]
    return shutil.which("nvcc") is not None or any(path.is_file() for path in compilers)


def plan_on_host() -> None:
    """Let FlashInfer plan from the host's lengths, unless the user's environment says otherwise."""
    for variable in _HOST_PLANS:
        os.environ.setdefault(variable, "1")


def _prefer_flashinfer(algorithm: str, original: Callable[..., str]) -> Callable[..., str]:
    from sglang.srt.arg_groups.model_override_base import resolving_view
    from sglang.srt.runtime_context import get_platform

    def get_default_attn_backend(server_args: Any, use_mla_backend: bool, model_config: Any) -> str:
        chosen = original(server_args, use_mla_backend, model_config)
        view = resolving_view(server_args)
        if str(view.speculative_algorithm).upper() != algorithm:
            return chosen
        if is_float32_on_gpu(view):
            return "triton"
        is_chain = view.speculative_eagle_topk in (None, 1)
        if chosen == "fa3" and is_chain:
            return chosen
        if chosen in _REPLACED and get_platform().has_flashinfer:
            if kernels_are_there():
                return "flashinfer"
            logger.warning(
                "FlashInfer has neither compiled kernels nor CUDA's compiler here: %s is used. "
                "pip install flashinfer-jit-cache, or set CUDA_HOME.",
                chosen,
            )
        return chosen

    return get_default_attn_backend
