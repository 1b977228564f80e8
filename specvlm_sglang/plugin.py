"""The door: SGLang's plugin entry points call this module, and it registers, nothing else.

SGLang loads it in every process it starts, before it parses its arguments; imports stay local.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)


def activate_cpu_platform() -> str | None:
    """Entry point ``sglang.srt.platforms``: our CPU platform where no accelerator is.

    Returns
    -------
    str or None
        The class path of the platform, or None where SGLang has a device of its own.
    """
    from specvlm_sglang.host import contract

    try:
        # Before torch is imported: another SGLang is refused at once.
        contract.require_version()
        from specvlm_sglang.cpu import activation

        if not activation.is_wanted():
            return None
        contract.require("platform")
    except contract.HostMismatchError as mismatch:
        logger.error("%s", mismatch)
        return None
    activation.prepare_process()
    return "specvlm_sglang.cpu.platform.TorchCpuPlatform"


def register() -> None:
    """Entry point ``sglang.srt.plugins``: everything else that SGLang should know of."""
    from specvlm_sglang.host import contract

    try:
        contract.require_version()
    except contract.HostMismatchError as mismatch:
        logger.error("%s", mismatch)
        return
    from specvlm_sglang import config
    from specvlm_sglang.cpu import activation
    from specvlm_sglang.host import engine_keywords, flags, process_roles, robustness
    from specvlm_sglang.host.media import install as media

    flags.install(config.add_flags, after_parsing=apply_flags)
    engine_keywords.install(apply_keywords)
    media.install()
    process_roles.install(robustness.INSTALLERS)
    from specvlm_sglang.models.native.llava_onevision import registration

    registration.register()
    from specvlm_sglang.host.video_requests import batches, chat, frames, qwen

    for reading in (batches, chat, frames, qwen):
        reading.install()
    from specvlm_sglang import algorithm

    algorithm.register()
    if activation.is_wanted():
        from specvlm_sglang.cpu import attention, threads, unsupported

        attention.register()
        unsupported.install()
        # Ranks meet before any of them imports a model runner, hence before `init_backend`.
        threads.install()
    apply_config()


def apply_flags(arguments: argparse.Namespace) -> None:
    """Export the flags that were given, then install what the settings ask for."""
    from specvlm_sglang.config import export_flags

    export_flags(arguments)
    apply_config()


def apply_keywords(keywords: Mapping[str, Any]) -> None:
    """Export an engine's keywords, then install what the settings ask for.

    Raises
    ------
    ValueError
        A keyword that cannot be used, or videos computed otherwise than by the engine before.
    """
    from specvlm_sglang.config import SpecVLMConfig, export_keywords
    from specvlm_sglang.host import exact_vision

    export_keywords(keywords)
    if exact_vision.is_in_processor() and not SpecVLMConfig.from_environment().exact_vision:
        raise ValueError(
            "specvlm_exact_vision=False must be True: an engine of this process had it, and that "
            "cannot be undone; make this engine in another process"
        )
    apply_config()


def apply_config() -> None:
    """Install what the settings in the environment ask for; idempotent."""
    from specvlm_sglang.config import SpecVLMConfig

    if SpecVLMConfig.from_environment().exact_vision:
        from specvlm_sglang.host import exact_vision

        exact_vision.install_in_model()
        exact_vision.install_in_processor()
