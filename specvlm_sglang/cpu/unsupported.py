"""What SGLang's command line offers and a CPU does not do: refused by the name that was given.

SGLang itself looks at a checkpoint's quantisation before it asks the platform anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

# What SGLang says of these names a flag that was not given, a driver, or nothing until it crashes.
_FLAGS: tuple[tuple[str, str, str], ...] = (
    (
        "--enable-deterministic-inference",
        "enable_deterministic_inference",
        "its kernels need a GPU; leave it out",
    ),
    (
        "--rl-on-policy-target",
        "rl_on_policy_target",
        "it asks for deterministic inference, whose kernels need a GPU; leave it out",
    ),
    (
        "--enable-memory-saver",
        "enable_memory_saver",
        "it releases GPU memory, and no process starts with its library without a GPU's driver; "
        "leave it out",
    ),
)
_NOT_QUANTISED = (None, "unquant")


def install() -> None:
    """Look at a server's arguments before SGLang resolves them, in this process; idempotent."""
    contract.require("cpu arguments")
    replace_function("sglang.srt.arg_groups.pipeline", "run_resolution_pipeline", _refusing_first)


def _refusing_first(original: Callable[..., None]) -> Callable[..., None]:
    def run_resolution_pipeline(server_args: Any) -> None:
        if server_args.device in (None, "cpu"):
            refuse(server_args)
        original(server_args)

    return run_resolution_pipeline


def refuse(server_args: Any) -> None:
    """Raise ``ValueError`` with one sentence for the first argument that a CPU cannot follow."""
    for flag, field, why in _FLAGS:
        value = getattr(server_args, field)
        if value:
            given = "" if value is True else f"={value}"
            raise ValueError(f"{flag}{given} does not work on a CPU: {why}")
    for flag, field in (
        ("--quantization", "quantization"),
        ("--speculative-draft-model-quantization", "speculative_draft_model_quantization"),
    ):
        value = getattr(server_args, field)
        if value not in _NOT_QUANTISED:
            raise ValueError(
                f"{flag}={value} does not work on a CPU: its kernels need a GPU; leave it out and "
                "name a checkpoint in bfloat16 or float32"
            )
    for flag, field in (
        ("--model-path", "model_path"),
        ("--speculative-draft-model-path", "speculative_draft_model_path"),
    ):
        path = getattr(server_args, field)
        method = None if path is None else quantization_of(path, server_args.trust_remote_code)
        if method is not None:
            raise ValueError(
                f"{flag}={path} is a checkpoint quantised with {method}, whose kernels need a GPU: "
                "name the one in bfloat16 or float32 that it was made from"
            )


def quantization_of(model: str, trust_remote_code: bool = False) -> str | None:
    """The method that a checkpoint's ``config.json`` names; None without one, or not here yet."""
    from transformers import PretrainedConfig

    try:
        # Nothing is fetched here: a machine without the hub would wait for it.
        config, _ = PretrainedConfig.get_config_dict(
            model, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError):
        # SGLang says what is wrong with the path.
        return None
    for holder in (config, config.get("text_config") or {}):
        for field in ("quantization_config", "compression_config"):
            found = holder.get(field) if isinstance(holder, Mapping) else None
            if found:
                return str(found.get("quant_method") or found.get("quant_algo") or "an own method")
    return None
