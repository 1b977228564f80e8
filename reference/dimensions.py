"""Dimensions of the models the cost model talks about, and the parameters that follow from them.

Only matrices are counted. Norms, biases and position tables are below 0.2 % of any model here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


def _require_positive(instance: object) -> None:
    for field in fields(instance):  # type: ignore[arg-type]
        value = getattr(instance, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not (math.isfinite(value) and value > 0):
            raise ValueError(
                f"{type(instance).__name__}.{field.name} is {value!r}; it must be finite and > 0"
            )


@dataclass(frozen=True)
class VisionDimensions:
    """A vision tower: patch embedding, transformer blocks, two-layer projector.

    A *grid* is what one block attends over at most: one frame, or the `temporal_patch` frames
    that a patch spans. How many patches a grid has depends on the resolution for Qwen2.5-VL
    (`dataclasses.replace` sets another one) and is fixed for SigLIP.

    Attributes
    ----------
    depth, hidden, intermediate
        Blocks, their width, and the width of their MLP.
    gated_mlp
        Three MLP matrices (gate, up, down) instead of two.
    patch, temporal_patch
        Side of a patch in pixels, and frames it spans.
    spatial_merge
        Patches per side concatenated into one projector input.
    projector_hidden, out_hidden
        Widths of the projector's two layers; the second is the language model's.
    patches_per_grid, tokens_per_grid
        Patches that enter, and video tokens that leave, for one grid.
    full_attention_blocks
        Blocks that attend over the whole grid; the others attend within windows.
    window_patches
        Patches in one attention window.
    """

    depth: int
    hidden: int
    intermediate: int
    gated_mlp: bool
    patch: int
    temporal_patch: int
    spatial_merge: int
    projector_hidden: int
    out_hidden: int
    patches_per_grid: int
    tokens_per_grid: int
    full_attention_blocks: int
    window_patches: int

    def __post_init__(self) -> None:
        _require_positive(self)
        if self.full_attention_blocks > self.depth:
            raise ValueError(
                f"full_attention_blocks is {self.full_attention_blocks}; "
                f"it must be at most depth ({self.depth})"
            )

    @property
    def patch_embedding_parameters(self) -> int:
        return 3 * self.temporal_patch * self.patch**2 * self.hidden

    @property
    def block_parameters(self) -> int:
        """Matrix elements of all blocks."""
        mlp_matrices = 3 if self.gated_mlp else 2
        return self.depth * (4 * self.hidden**2 + mlp_matrices * self.hidden * self.intermediate)

    @property
    def projector_parameters(self) -> int:
        merged = self.spatial_merge**2 * self.hidden
        return merged * self.projector_hidden + self.projector_hidden * self.out_hidden

    @property
    def parameters(self) -> int:
        return self.patch_embedding_parameters + self.block_parameters + self.projector_parameters


@dataclass(frozen=True)
class ModelDimensions:
    """A video LLM: a Qwen2-style decoder (grouped queries, gated MLP) behind a vision tower.

    Attributes
    ----------
    hidden, layers, q_heads, kv_heads, head_dim, intermediate, vocab
        As in the checkpoint's `config.json`.
    tied_embeddings
        The output head is the embedding table.
    bytes_per_parameter, bytes_per_kv_element
        2 for bfloat16, 1 for 8-bit, 0.5 for 4-bit storage.
    """

    name: str
    hidden: int
    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied_embeddings: bool
    vision: VisionDimensions
    bytes_per_parameter: float = 2.0
    bytes_per_kv_element: float = 2.0

    def __post_init__(self) -> None:
        _require_positive(self)
        if self.q_heads % self.kv_heads:
            raise ValueError(
                f"q_heads is {self.q_heads}; it must be a multiple of kv_heads ({self.kv_heads})"
            )

    @property
    def layer_parameters(self) -> int:
        """Matrix elements of all decoder layers: what every decoded token passes through."""
        attention = 2 * self.hidden * self.head_dim * (self.q_heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_parameters(self) -> int:
        """Matrix elements of the output head, tied or not."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Matrix elements of the whole model, vision tower included."""
        tables = 1 if self.tied_embeddings else 2
        return self.layer_parameters + tables * self.head_parameters + self.vision.parameters

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of keys and values that one token occupies over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_kv_element


def _qwen_tower(out_hidden: int, intermediate: int) -> VisionDimensions:
    # vision_config of Qwen/Qwen2.5-VL-*-Instruct; window_size 112 px is 8 x 8 patches, and
    # fullatt_block_indexes has 4 entries. 392 tokens (784 x 392 px) for two frames is this
    # project's choice: 128 frames are then 25k video tokens, as in the published tables.
    return VisionDimensions(
        depth=32,
        hidden=1280,
        intermediate=intermediate,
        gated_mlp=True,
        patch=14,
        temporal_patch=2,
        spatial_merge=2,
        projector_hidden=4 * 1280,
        out_hidden=out_hidden,
        patches_per_grid=4 * 392,
        tokens_per_grid=392,
        full_attention_blocks=4,
        window_patches=64,
    )


def _siglip_tower(out_hidden: int) -> VisionDimensions:
    # google/siglip-so400m-patch14-384 without its last block; 27 x 27 patches are projected and
    # then pooled to 14 x 14 tokens for each frame of a video.
    return VisionDimensions(
        depth=26,
        hidden=1152,
        intermediate=4304,
        gated_mlp=False,
        patch=14,
        temporal_patch=1,
        spatial_merge=1,
        projector_hidden=out_hidden,
        out_hidden=out_hidden,
        patches_per_grid=27 * 27,
        tokens_per_grid=14 * 14,
        full_attention_blocks=26,
        window_patches=27 * 27,
    )


# Sources: config.json of Qwen/Qwen2.5-VL-{3B,7B,32B,72B}-Instruct. (The 72B AWQ checkpoint pads its
# MLP to 29696; the original has 29568.) LLaVA-OneVision keeps its language models' dimensions:
# config.json of Qwen/Qwen2-{0.5B,7B,72B}. The llava-hf conversions pad the vocabulary a little.
_PUBLISHED = (
    ModelDimensions(
        "qwen2.5-vl-3b", 2048, 36, 16, 2, 128, 11008, 151936, True, _qwen_tower(2048, 3420)
    ),
    ModelDimensions(
        "qwen2.5-vl-7b", 3584, 28, 28, 4, 128, 18944, 152064, False, _qwen_tower(3584, 3420)
    ),
    ModelDimensions(
        "qwen2.5-vl-32b", 5120, 64, 40, 8, 128, 27648, 152064, False, _qwen_tower(5120, 3456)
    ),
    ModelDimensions(
        "qwen2.5-vl-72b", 8192, 80, 64, 8, 128, 29568, 152064, False, _qwen_tower(8192, 3456)
    ),
    ModelDimensions(
        "llava-onevision-0.5b", 896, 24, 14, 2, 64, 4864, 151936, True, _siglip_tower(896)
    ),
    ModelDimensions(
        "llava-onevision-7b", 3584, 28, 28, 4, 128, 18944, 152064, False, _siglip_tower(3584)
    ),
    ModelDimensions(
        "llava-onevision-72b", 8192, 80, 64, 8, 128, 29568, 152064, False, _siglip_tower(8192)
    ),
)

PUBLISHED_MODELS = {model.name: model for model in _PUBLISHED}


def published_model(name: str) -> ModelDimensions:
    """Dimensions of a published checkpoint.

    Raises
    ------
    ValueError
        The name is not one of `PUBLISHED_MODELS`.
    """
    try:
        return PUBLISHED_MODELS[name]
    except KeyError:
        raise ValueError(
            f"name is {name!r}; it must be one of {', '.join(PUBLISHED_MODELS)}"
        ) from None
