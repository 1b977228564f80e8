"""Whether a checkpoint's files hold the weights that its configuration describes.

Read off their headers before anything is loaded. SGLang asserts shapes deep in a loader, and what a
file lacks it leaves as it was allocated: such a draft is never right, and nothing says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from specvlm_sglang.host.weight_updates import header_of
from specvlm_sglang.models.configs import language_config, read_config

_INDEX = "model.safetensors.index.json"
_OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.gguf")
_QUANTISED = ("quantization_config", "compression_config")
_VISION = re.compile(r"(^|\.)(visual|vision_model|vision_tower)\.")
_PATCHES = re.compile(r"patch_embed(\.proj|ding)\.weight$")
_BLOCK = re.compile(r"(?:^|\.)(?:layers|blocks)\.(\d+)\.")

Shapes = Mapping[str, tuple[int, ...]]


@lru_cache(maxsize=4)
def check_weights(path: str, *, trust_remote_code: bool = False) -> None:
    """Raise unless the safetensors of a directory are whole, and have the configured shapes.

    Not looked at: names of the hub, other formats, and the widths of quantised weights. Layers
    that the configuration does not count are allowed, as SGLang passes over them.

    Parameters
    ----------
    path
        A model path or hub name.
    trust_remote_code
        As SGLang's ``--trust-remote-code``.

    Raises
    ------
    ValueError
        A file that is missing, cut or unreadable; a layer or the vision tower missing; another
        shape. The message names ``path``, and what disagrees.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    try:
        shapes = _shapes(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"the weights of {path} cannot be read: {error}") from error
    if shapes is None:
        return
    config = read_config(path, trust_remote_code=trust_remote_code)
    for found in _disagreements(config, shapes):
        raise ValueError(f"the weights of {path} are not those of its config.json: {found}")


def _shapes(folder: Path) -> Shapes | None:
    """Shapes by tensor name; None where the weights are in another format."""
    files = sorted(folder.glob("*.safetensors"))
    if (folder / _INDEX).is_file():
        names = set(json.loads((folder / _INDEX).read_text())["weight_map"].values())
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing:
            raise ValueError(f"{missing[0]} is missing, which {_INDEX} names")
        files = [folder / name for name in sorted(names)]
    if not files:
        if any(any(folder.glob(pattern)) for pattern in _OTHER_FORMATS):
            return None
        raise ValueError("there is no *.safetensors")
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            entries = header_of(file)
        except ValueError as error:
            raise ValueError(f"{file.name}: {error}") from error
        found |= {name: tuple(entry["shape"]) for name, entry in entries.items()}
    return found


def _disagreements(config: Any, shapes: Shapes) -> Iterator[str]:
    text, vision = language_config(config), getattr(config, "vision_config", None)
    tower = {name: shape for name, shape in shapes.items() if _VISION.search(name)}
    language = {name: shape for name, shape in shapes.items() if name not in tower}
    yield from _missing_layers(language, text.num_hidden_layers, "num_hidden_layers", "layer")
    if not any(getattr(one, field, None) for one in (config, text) for field in _QUANTISED):
        yield from _other_shapes(language, _language_shapes(text))
    if vision is None:
        return
    if not tower:
        yield "there is a vision_config, and no vision tower"
    depth = next(name for name in ("depth", "num_hidden_layers") if hasattr(vision, name))
    yield from _missing_layers(tower, getattr(vision, depth), depth, "layer of the vision tower")
    # Qwen2-VL calls the width of its language model the hidden size of its vision tower.
    width = "embed_dim" if hasattr(vision, "embed_dim") else "hidden_size"
    for name, shape in tower.items():
        if _PATCHES.search(name) and shape[0] != getattr(vision, width):
            yield (
                f"{name} has {shape[0]} rows, and {width} of vision_config is "
                f"{getattr(vision, width)}"
            )


def _missing_layers(shapes: Shapes, count: int, field: str, what: str) -> Iterator[str]:
    there = {int(found[1]) for name in shapes if (found := _BLOCK.search(name))}
    missing = sorted(set(range(count)) - there)
    if missing:
        yield f"{field} is {count}, and there is no {what} {missing[0]} (counted from 0)"


def _language_shapes(text: Any) -> dict[str, dict[str, int]]:
    """What rows and columns of a language model's tensors are, by the end of their names."""
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    hidden = {"hidden_size": text.hidden_size}
    inner = {"intermediate_size": getattr(text, "intermediate_size", 0)}
    vocabulary = {"vocab_size": text.vocab_size}
    queries = {"num_attention_heads x head_dim": heads * head}
    keys = {"num_key_value_heads x head_dim": kv_heads * head}
    return {
        "embed_tokens.weight": vocabulary | hidden,
        "lm_head.weight": vocabulary | hidden,
        "self_attn.q_proj.weight": queries | hidden,
        "self_attn.k_proj.weight": keys | hidden,
        "self_attn.v_proj.weight": keys | hidden,
        "self_attn.o_proj.weight": hidden | queries,
        "mlp.gate_proj.weight": inner | hidden,
        "mlp.up_proj.weight": inner | hidden,
        "mlp.down_proj.weight": hidden | inner,
    }


def _other_shapes(shapes: Shapes, wanted: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    for name, shape in shapes.items():
        for end, sizes in wanted.items():
            if not name.endswith(f".{end}") and name != end:
                continue
            if shape != tuple(sizes.values()):
                yield f"{name} is {list(shape)}, and {_listed(sizes)}"


def _listed(sizes: Mapping[str, int]) -> str:
    return " and ".join(f"{name} is {size}" for name, size in sizes.items())
