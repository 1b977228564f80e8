"""Configurations of checkpoints, those that transformers does not know included."""

from __future__ import annotations

from typing import Any


def read_config(path: str, *, trust_remote_code: bool = False) -> Any:
    """Return the configuration of a checkpoint.

    Parameters
    ----------
    path
        A directory or hub name.
    trust_remote_code
        As SGLang's ``--trust-remote-code``.

    Raises
    ------
    OSError
        There is none at ``path``.
    """
    # Brings configurations of its own to transformers.
    import sglang.srt.utils.hf_transformers_utils  # noqa: F401
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)


def language_config(config: Any) -> Any:
    """Return the part of a configuration that describes the language model."""
    return getattr(config, "llm_config", None) or config.get_text_config()
