"""Enlarges the target without changing what it says, for measurements of speed.

    python -m specvlm_sglang.tools.demo.enlarge --parameters 500M --out DIR

Before each of its layers the enlarged model has further ones that attend as that layer does and
whose output is zero; its MLPs are wider by columns that have no output. It answers and attends to
a video as the small one does, at the cost of reading and multiplying all its weights. Acceptance
measured with it is the trained pair's; cost is the enlarged model's. Say so beside every number.
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
from transformers import Qwen2_5_VLForConditionalGeneration

from specvlm_sglang.tools.demo import target_path

LAYERS = 32
"""Layers of the enlarged language model."""
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}
_SPREAD = 0.02


def enlarge(
    model: Qwen2_5_VLForConditionalGeneration, parameters: int, *, layers: int = LAYERS
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
        If `parameters` or `layers` is too small.
    """
    text = model.config.text_config
    own = sum(parameter.numel() for parameter in model.parameters())
    if layers < 1 or layers % text.num_hidden_layers:
        raise ValueError(f"layers must be a multiple of {text.num_hidden_layers}, got {layers}")
    attention = sum(p.numel() for p in model.model.language_model.layers[0].self_attn.parameters())
    fixed = own - text.num_hidden_layers * 3 * text.hidden_size * text.intermediate_size
    fixed += (layers - text.num_hidden_layers) * (attention + 2 * text.hidden_size)
    width = round((parameters - fixed) / (layers * 3 * text.hidden_size) / 64) * 64
    if width < text.intermediate_size:
        least = fixed + layers * 3 * text.hidden_size * text.intermediate_size
        raise ValueError(
            f"parameters must be at least {least} with {layers} layers, got {parameters}"
        )
    config = copy.deepcopy(model.config)
    config.text_config.num_hidden_layers = layers
    config.text_config.layer_types = ["full_attention"] * layers
    config.text_config.intermediate_size = width
    large = Qwen2_5_VLForConditionalGeneration(config).to(model.dtype).eval()
    generator = torch.Generator().manual_seed(0)
    small = model.state_dict()
    group = layers // text.num_hidden_layers
    with torch.no_grad():
        for name, weight in large.state_dict().items():
            source = _source(name, group)
            _fill(name, weight, None if source is None else small[source], generator)
    large.generation_config = model.generation_config
    return large


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


def cache_folder(parameters: int) -> Path:
    """Where the shipped target is kept enlarged: under ``XDG_CACHE_HOME`` or ``~/.cache``.

    Another target, or another way to enlarge it, is another folder.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    weights = (target_path() / "model.safetensors").read_bytes()
    key = hashlib.sha256(weights + Path(__file__).read_bytes()).hexdigest()[:12]
    return root / "specvlm-sglang" / f"target-{parameters // 1_000_000}M-{key}"


def write(source: Path, out: Path, parameters: int, dtype: torch.dtype = torch.bfloat16) -> int:
    """Write the checkpoint ``source`` enlarged to ``out``, whole or not at all.

    Returns
    -------
    int
        How many parameters it has.

    Raises
    ------
    ValueError
        `parameters` is too small.
    """
    small = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, dtype=dtype)
    large = enlarge(small, parameters)
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
        description="Write the target at the cost of a larger model, with the same answers.",
    )
    parser.add_argument("--parameters", required=True, help="about how many: 100M to 1B")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--source", type=Path, default=target_path(), help="the small model")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    arguments = parser.parse_args()
    try:
        count = parse_count(arguments.parameters)
        total = write(arguments.source, arguments.out, count, getattr(torch, arguments.dtype))
    except ValueError as error:
        parser.error(str(error))
    Console().print(f"wrote {total / 1e6:.0f}M parameters to {arguments.out}")


if __name__ == "__main__":
    main()
