"""Enlarges target or draft without changing what they say, for measurements of speed and memory.

    python -m specvlm_sglang.tools.demo.enlarge --parameters 500M --out DIR

Before each of its layers the enlarged model has further ones that attend as that layer does and
whose output is zero; its MLPs are wider by columns that have no output; its KV heads can be copied.
It answers and attends to a video as the small one does, at the cost of reading and multiplying all
its weights and keeping all its keys and values. Acceptance measured with it is the trained pair's;
cost is the enlarged model's. Say so beside every number.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
import re
import shutil
from pathlib import Path

import torch
from rich.console import Console
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from specvlm_sglang.tools.demo import target_path

LAYERS = 32
"""Layers of the enlarged language model, where it has parameters enough for them."""
DRAFT_LAYERS = 16
"""The same of an enlarged draft: published drafts have a third to a half of their target's."""
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}
_SPREAD = 0.02


def enlarge(
    model: Qwen2_5_VLForConditionalGeneration,
    parameters: int,
    *,
    layers: int = LAYERS,
    kv_heads: int | None = None,
) -> Qwen2_5_VLForConditionalGeneration:
    """A larger model with the same outputs.

    Parameters
    ----------
    model : Qwen2_5_VLForConditionalGeneration
        Left as it is.
    parameters : int
        About how many the result has.
    layers : int
        How many layers its language model has; a multiple of the model's.
    kv_heads : int, optional
        How many KV heads a layer has, each of the model's copied equally often: a multiple of the
        model's that divides its attention heads. None: the model's.

    Returns
    -------
    Qwen2_5_VLForConditionalGeneration
        In the model's dtype. In float32 its logits are the model's bit by bit as long as matrix
        products add their terms in order; a product with a single row may round its last bit
        differently, because the longer sum is split elsewhere. Language-to-video scores are the
        model's: each of its layers comes with equally many that read the same input with the same
        queries and keys.

    Raises
    ------
    ValueError
        If `parameters`, `layers` or `kv_heads` cannot be had.
    """
    config = _config(model, parameters, layers, kv_heads)
    text, own = config.text_config, model.config.text_config
    large = Qwen2_5_VLForConditionalGeneration(config).to(model.dtype).eval()
    generator = torch.Generator().manual_seed(0)
    small = model.state_dict()
    group = layers // own.num_hidden_layers
    head = own.hidden_size // own.num_attention_heads
    copies = text.num_key_value_heads // own.num_key_value_heads
    with torch.no_grad():
        for name, weight in large.state_dict().items():
            source = _source(name, group)
            found = None if source is None else small[source]
            if found is not None and re.search(r"language_model.*\.[kv]_proj", name):
                blocks = found.unflatten(0, (-1, head))
                found = blocks.repeat_interleave(copies, 0).flatten(0, 1)
            _fill(name, weight, found, generator)
    large.generation_config = model.generation_config
    return large


def least_parameters(
    model: Qwen2_5_VLForConditionalGeneration, layers: int, kv_heads: int | None = None
) -> int:
    """The smallest size of ``model`` with so many layers and KV heads."""
    text = model.config.text_config
    own = sum(parameter.numel() for parameter in model.parameters())
    layer = sum(p.numel() for p in model.model.language_model.layers[0].parameters())
    head = text.hidden_size // text.num_attention_heads
    more = (kv_heads or text.num_key_value_heads) - text.num_key_value_heads
    keys_and_values = 2 * more * head * (text.hidden_size + 1)
    return int(own + (layers - text.num_hidden_layers) * layer + layers * keys_and_values)


def most_layers(
    model: Qwen2_5_VLForConditionalGeneration,
    parameters: int,
    wanted: int,
    kv_heads: int | None = None,
) -> int:
    """As many layers as fit ``parameters``, at most ``wanted``; a multiple of the model's."""
    own = int(model.config.text_config.num_hidden_layers)
    fitting = range(own, wanted + 1, own)
    return max(
        (n for n in fitting if least_parameters(model, n, kv_heads) <= parameters), default=own
    )


def _config(
    model: Qwen2_5_VLForConditionalGeneration, parameters: int, layers: int, kv_heads: int | None
) -> Qwen2_5_VLConfig:
    own = model.config.text_config
    if layers < 1 or layers % own.num_hidden_layers:
        raise ValueError(f"layers must be a multiple of {own.num_hidden_layers}, got {layers}")
    heads, least_heads = own.num_attention_heads, own.num_key_value_heads
    kv_heads = least_heads if kv_heads is None else kv_heads
    if kv_heads < 1 or kv_heads % least_heads or heads % kv_heads:
        raise ValueError(
            f"kv_heads must be a multiple of {least_heads} that divides {heads}, got {kv_heads}"
        )
    least = least_parameters(model, layers, kv_heads)
    column = layers * 3 * own.hidden_size
    wider = round((parameters - least) / column / 64) * 64
    if wider < 0:
        raise ValueError(
            f"parameters must be at least {least} with {layers} layers, got {parameters}"
        )
    config = copy.deepcopy(model.config)
    config.text_config.num_hidden_layers = layers
    config.text_config.num_key_value_heads = kv_heads
    config.text_config.layer_types = ["full_attention"] * layers
    config.text_config.intermediate_size = own.intermediate_size + wider
    return config


def _source(name: str, group: int) -> str | None:
    """The small model's weight that the large one's weight ``name`` holds; None: none of them.

    The last layer of each ``group`` is the small model's; the others take from it what decides
    where they attend.
    """
    found = re.search(r"language_model\.layers\.(\d+)\.(.*)", name)
    if found is None:
        return name
    index, part = int(found[1]), found[2]
    if (index + 1) % group and not re.match(r"input_layernorm|self_attn\.[qk]_proj", part):
        return None
    return f"{name[: found.start(1)]}{index // group}.{part}"


def _fill(
    name: str, weight: torch.Tensor, small: torch.Tensor | None, generator: torch.Generator
) -> None:
    """Random weights that have no effect, then the small model's in the first rows and columns."""
    if weight.ndim == 2 and re.search(r"(gate|up|v)_proj", name):
        weight.normal_(0, _SPREAD, generator=generator)
    elif re.search(r"layers\.\d+\..*proj", name):
        weight.zero_()
    if small is not None:
        weight[tuple(slice(size) for size in small.shape)] = small


def parse_count(text: str) -> int:
    """A number with an optional unit: "500M", "1B", "120000000".

    Raises
    ------
    ValueError
        If it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.upper())
    if found is None:
        raise ValueError(f"--parameters must be a number like 500M or 1B, got {text!r}")
    return int(float(found[1]) * _UNITS[found[2]])


def cache_folder(source: Path, parameters: int, kv_heads: int | None = None) -> Path:
    """Where the checkpoint ``source`` is kept enlarged: in ``XDG_CACHE_HOME`` or ``~/.cache``.

    Another checkpoint, or another way to enlarge it, is another folder.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    weights = (source / "model.safetensors").read_bytes()
    key = hashlib.sha256(weights + Path(__file__).read_bytes()).hexdigest()[:12]
    size = f"{parameters / 1_000_000:g}M" + ("" if kv_heads is None else f"-kv{kv_heads}")
    return root / "specvlm-sglang" / f"{source.name}-{size}-{key}"


def write(
    source: Path,
    out: Path,
    parameters: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    layers: int = LAYERS,
    kv_heads: int | None = None,
) -> int:
    """Write the checkpoint ``source`` enlarged to ``out``, whole or not at all.

    Parameters
    ----------
    layers : int
        At most so many; fewer where ``parameters`` do not suffice for them.
    kv_heads : int, optional
        As in `enlarge`.

    Returns
    -------
    int
        How many parameters it has.

    Raises
    ------
    ValueError
        `parameters` is too small, or `kv_heads` cannot be had.
    """
    small = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, dtype=dtype)
    layers = most_layers(small, parameters, layers, kv_heads)
    large = enlarge(small, parameters, layers=layers, kv_heads=kv_heads)
    part = out.with_name(f"{out.name}.part-{os.getpid()}")
    try:
        large.save_pretrained(part)
        written = {path.name for path in part.iterdir()}
        for path in source.iterdir():
            if path.name not in written and path.suffix != ".safetensors":
                shutil.copy(path, part / path.name)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sum(parameter.numel() for parameter in large.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m specvlm_sglang.tools.demo.enlarge",
        description="Write a model at the cost of a larger one, with the same answers.",
    )
    parser.add_argument("--parameters", required=True, help="about how many, such as 500M")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--source", type=Path, default=target_path(), help="the small model")
    parser.add_argument("--layers", type=int, default=LAYERS, help="at most so many")
    parser.add_argument("--kv-heads", type=int, help="of a layer; default: the small model's")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    arguments = parser.parse_args()
    try:
        count = parse_count(arguments.parameters)
        total = write(
            arguments.source,
            arguments.out,
            count,
            getattr(torch, arguments.dtype),
            layers=arguments.layers,
            kv_heads=arguments.kv_heads,
        )
    except ValueError as error:
        parser.error(str(error))
    Console().print(f"wrote {total / 1e6:.0f}M parameters to {arguments.out}")


if __name__ == "__main__":
    main()
