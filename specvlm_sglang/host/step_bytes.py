"""Bytes that a decode step of a model moves, read off its runner."""

from __future__ import annotations

from typing import Any

from specvlm_sglang.host import contract, early_exit


def weight_bytes(runner: Any) -> int | None:
    """Bytes of the weights that each decode step reads; None where that is not known.

    Parameters
    ----------
    runner
        SGLang's ``ModelRunner``, of a model that is loaded.

    Returns
    -------
    int or None
        Of the decoder layers, and of the embedding in the output layer's place. None for a mixture
        of experts, whose steps read some, and where the layers are not found.
    """
    text = runner.model_config.hf_text_config
    if any(getattr(text, name, None) for name in ("num_experts", "n_routed_experts")):
        return None
    try:
        decoder = early_exit.decoder_of(runner.model)
    except ValueError:
        return None
    return int(sum(weight.numel() * weight.element_size() for weight in decoder.parameters()))


def kv_bytes_per_token(runner: Any) -> float:
    """Bytes of keys and values of one token in all layers, of a pool that is allocated."""
    contract.require("step_bytes")
    pool = runner.token_to_kv_pool
    return float(sum(pool.get_kv_size_bytes()) / (pool.size + pool.page_size))
