"""What a checkpoint asks of a machine, read from its files without loading them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specvlm_sglang.models.configs import language_config, read_config

_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelNeeds:
    """What one checkpoint needs.

    Attributes
    ----------
    weight_bytes
        Of its weights, in their own dtype; None where they are not on this disk yet.
    kv_bytes_per_token
        Of its KV cache, all layers.
    context
        Tokens that it was made for.
    """

    weight_bytes: int | None
    kv_bytes_per_token: int
    context: int


def model_needs(path: str, dtype: str = "bfloat16") -> ModelNeeds:
    """Read the needs of a checkpoint directory, or of a hub name that is in the local cache.

    Parameters
    ----------
    path
        The checkpoint.
    dtype
        Of its KV cache: bfloat16, float16 or float32.

    Raises
    ------
    OSError
        There is no configuration at ``path``.
    """
    text = language_config(read_config(path))
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    return ModelNeeds(
        weight_bytes=weight_bytes(path),
        kv_bytes_per_token=2 * text.num_hidden_layers * kv_heads * head_dim * _ELEMENT_BYTES[dtype],
        context=text.max_position_embeddings,
    )


def weight_bytes(path: str) -> int | None:
    """Bytes of a checkpoint's weights; None where they are not on this disk."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        found: Any = _cached_folder(path)
        if found is None:
            return None
        folder = found
    sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
    return sum(sizes) or None


def _cached_folder(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None
