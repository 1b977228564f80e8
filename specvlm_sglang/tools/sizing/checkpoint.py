"""A model to size: a published one by name, or a checkpoint's directory by its configuration."""

from __future__ import annotations

from typing import Any

from specvlm_sglang.models.configs import language_config, read_config
from specvlm_sglang.tools.errors import ToolError
from specvlm_sglang.tools.needs import weight_bytes
from specvlm_sglang.tools.sizing.dimensions import ModelDimensions, VisionDimensions
from specvlm_sglang.tools.sizing.memory import Model
from specvlm_sglang.tools.sizing.published import named

_TOKENS_PER_GRID = 392
"""Video tokens of one grid of a Qwen model, which depend on the resolution: as in the tables."""


def model_of(name: str, flag: str) -> Model:
    """A model by a published name, without its files, or by those of a checkpoint.

    Parameters
    ----------
    name
        Of the hub, or a directory.
    flag
        That it was given by, for errors.

    Raises
    ------
    ToolError
        It is neither, or its vision tower is not known.
    """
    published = named(name)
    found = weight_bytes(name)
    if published is not None:
        size = published.parameters * published.bytes_per_parameter
        source = f"table of published dimensions: {published.parameters / 1e9:.1f}B x 2 bytes"
        if found is not None:
            return Model(name, published, found, "dimensions: table; weights: size of its files")
        return Model(name, published, size, source)
    try:
        dimensions = dimensions_of(name)
    except OSError as error:
        raise ToolError(
            f"{flag} {name}: neither a published name that is known nor a checkpoint here "
            f"({' '.join(str(error).split())[:200]})"
        ) from None
    if found is None:
        found = int(dimensions.parameters * dimensions.bytes_per_parameter)
        return Model(name, dimensions, found, "its config.json: parameters x 2 bytes")
    return Model(name, dimensions, found, "its config.json, and the size of its weight files")


def dimensions_of(path: str) -> ModelDimensions:
    """Dimensions of a checkpoint by its configuration; weights as in bfloat16.

    Raises
    ------
    OSError
        There is no configuration at ``path``.
    ToolError
        The layout of its vision tower is not known.
    """
    config = read_config(path)
    text = language_config(config)
    heads = text.num_attention_heads
    experts = getattr(text, "num_experts", None) or 1
    return ModelDimensions(
        name=path,
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        q_heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        intermediate=text.moe_intermediate_size if experts > 1 else text.intermediate_size,
        vocab=text.vocab_size,
        tied_embeddings=bool(config.tie_word_embeddings),
        vision=_tower(config, text.hidden_size, path),
        experts=experts,
        experts_per_token=text.num_experts_per_tok if experts > 1 else 1,
    )


def _tower(config: Any, out_hidden: int, path: str) -> VisionDimensions:
    kind, vision = config.model_type, getattr(config, "vision_config", None)
    if vision is not None and kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"):
        return _qwen_tower(kind, vision, out_hidden)
    if vision is not None and kind in ("internvl_chat", "llava_onevision"):
        intern = kind == "internvl_chat"
        side = vision.image_size // vision.patch_size
        depth = vision.num_hidden_layers
        return VisionDimensions(
            depth=depth,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            gated_mlp=False,
            patch=vision.patch_size,
            temporal_patch=1,
            spatial_merge=2 if intern else 1,
            projector_hidden=out_hidden,
            out_hidden=out_hidden,
            patches_per_grid=side**2,
            tokens_per_grid=((side + 1) // 2) ** 2,
            full_attention_blocks=depth,
            window_patches=side**2,
        )
    raise ToolError(
        f"{path}: the vision tower of {kind} cannot be sized; those of Qwen-VL, "
        "InternVL and LLaVA-OneVision can"
    )


def _qwen_tower(kind: str, vision: Any, out_hidden: int) -> VisionDimensions:
    old = kind == "qwen2_vl"
    hidden = vision.embed_dim if old else vision.hidden_size
    patches = vision.spatial_merge_size**2 * _TOKENS_PER_GRID
    window = getattr(vision, "window_size", None) if kind == "qwen2_5_vl" else None
    return VisionDimensions(
        depth=vision.depth,
        hidden=hidden,
        intermediate=int(hidden * vision.mlp_ratio) if old else vision.intermediate_size,
        gated_mlp=kind == "qwen2_5_vl",
        patch=vision.patch_size,
        temporal_patch=vision.temporal_patch_size,
        spatial_merge=vision.spatial_merge_size,
        projector_hidden=vision.spatial_merge_size**2 * hidden,
        out_hidden=out_hidden,
        patches_per_grid=patches,
        tokens_per_grid=_TOKENS_PER_GRID,
        full_attention_blocks=len(vision.fullatt_block_indexes) if window else vision.depth,
        window_patches=(window // vision.patch_size) ** 2 if window else patches,
        projectors=1 + len(getattr(vision, "deepstack_visual_indexes", None) or ()),
    )
