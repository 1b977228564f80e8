"""Configurations of checkpoints, those that transformers does not know included."""

from __future__ import annotations

from typing import Any

from specvlm_sglang.host import contract


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
    contract.require("configurations")
    # transformers' own, once SGLang has added what it brings to it.
    from sglang.srt.utils.hf_transformers.common import AutoConfig

    return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)


def language_config(config: Any) -> Any:
    """Return the part of a configuration that describes the language model."""
    return getattr(config, "llm_config", None) or config.get_text_config()


def context_length(config: Any) -> int:
    """Tokens that a model was made to read, as SGLang counts them."""
    contract.require("configurations")
    from sglang.srt.utils.hf_transformers.common import get_context_length

    return int(get_context_length(language_config(config)))
