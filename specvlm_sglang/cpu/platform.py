"""The out-of-tree SGLang platform that serves on any CPU, from SGLang's PyPI wheels."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

from specvlm_sglang.cpu.attention import BACKEND_NAME
from specvlm_sglang.host import contract, penalty_order

# The KV pool is zeroed at start, seconds for a GB, and its free list walked on every release. A CPU
# never gets through this many tokens in a sensible time: a small model must not claim all memory.
DEFAULT_MAX_TOTAL_TOKENS = 131_072
DEFAULT_MAX_RUNNING_REQUESTS = 64
# Weights and KV; the rest stays for activations, the tokenizer's processes and the user's desktop.
DEFAULT_MEM_FRACTION_STATIC = 0.6


class TorchCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """CPU serving in plain torch: no ``sgl_kernel``, no Triton, no graphs.

    SGLang's in-tree CPU engine needs ``sgl_kernel``, whose PyPI wheel links libcuda. Registering as
    an out-of-tree platform makes SGLang take its torch-native paths instead.
    """

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    capabilities = PlatformCapabilities()

    def get_device(self, device_id: int = 0) -> str:
        """Return SGLang's name for the device; all ranks share the one CPU."""
        return "cpu"

    def get_compile_backend(self, mode: str | None = None) -> str:
        """Return ``"eager"``: no compiler is assumed on a user's machine."""
        return "eager"

    def get_default_attention_backend(self) -> str:
        """Return the name of our torch attention backend."""
        return BACKEND_NAME

    def get_default_speculative_draft_attention_backend(self, algorithm: str) -> str:
        """Return the name of our torch attention backend, which drafts too."""
        return BACKEND_NAME

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        """Whether ``algorithm`` runs on our kernels (hidden-state drafts were not tried)."""
        return algorithm.upper() in ("STANDALONE", "SPECVLM")

    def supports_speculative_draft_attention_backend(self, algorithm: str, backend: str) -> bool:
        """Whether a draft of ``algorithm`` may use ``backend`` here."""
        return backend == BACKEND_NAME

    def get_speculative_cache_locs_fn(self) -> Any:
        """Return our gather of the slots that a verify or draft-extend pass writes."""
        from specvlm_sglang.cpu.kernels import cache_locs

        return cache_locs.assign_extend_cache_locs

    def get_torch_profiler_activity_str(self) -> str:
        """Return the profiler's name for what this platform does."""
        return "CPU"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        """Return the profiler's activity of that name."""
        return torch.profiler.ProfilerActivity.CPU

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Fill in what the user left open; explicit flags win.

        ``intel_amx`` is SGLang's own default for a CPU and cannot load here (``sgl_kernel``).
        """
        if server_args.device != "cpu":
            return
        contract.require("platform defaults")
        if server_args.attention_backend in (None, "intel_amx"):
            server_args.attention_backend = BACKEND_NAME
        if server_args.max_total_tokens is None:
            server_args.max_total_tokens = DEFAULT_MAX_TOTAL_TOKENS
        if server_args.max_running_requests is None:
            server_args.max_running_requests = DEFAULT_MAX_RUNNING_REQUESTS
        if server_args.mem_fraction_static is None:
            server_args.mem_fraction_static = DEFAULT_MEM_FRACTION_STATIC
        # An idle scheduler polls without pause, which costs a GPU's host little and a CPU one core.
        server_args.sleep_on_idle = True
        # There is no second stream to overlap with; the scheduler thread does the forward pass.
        server_args.disable_overlap_schedule = True

    def init_backend(self) -> None:
        """Install the torch kernels, packed weights and the vision attention, once per worker."""
        from specvlm_sglang.cpu import (
            internvl_pixels,
            kernels,
            linear,
            memory,
            unpadded,
            vision_attention,
        )

        # Without overlap scheduling, as here, SGLang's plain decoding has no fixed order.
        penalty_order.install()
        memory.install()
        kernels.install()
        linear.install()
        unpadded.install()
        vision_attention.install()
        internvl_pixels.install()
