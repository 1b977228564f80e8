"""Dimensions of video LLMs, and the parameters and bytes that follow from them.

Only matrices are counted. Norms, biases and position tables are below 0.2 % of any model here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


def _require_positive(instance: object, *, but: str = "") -> None:
    for field in fields(instance):  # type: ignore[arg-type]
        if field.name == but:
            continue
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
    projectors
        Projectors of that size: one, and one more for each block whose features go to a layer of
        the language model of their own (Qwen3-VL's DeepStack).
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
    projectors: int = 1

    def __post_init__(self) -> None:
        _require_positive(self, but="full_attention_blocks")
        if not 0 <= self.full_attention_blocks <= self.depth:
            raise ValueError(
                f"full_attention_blocks is {self.full_attention_blocks}; "
                f"it must be 0 to depth ({self.depth})"
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
        one = merged * self.projector_hidden + self.projector_hidden * self.out_hidden
        return self.projectors * one

    @property
    def parameters(self) -> int:
        return self.patch_embedding_parameters + self.block_parameters + self.projector_parameters


@dataclass(frozen=True)
class ModelDimensions:
    """A video LLM: a Qwen-style decoder (grouped queries, gated MLP) behind a vision tower.

    Attributes
    ----------
    hidden, layers, q_heads, kv_heads, head_dim, intermediate, vocab
        As in the checkpoint's `config.json`; ``intermediate`` is that of one expert.
    tied_embeddings
        The output head is the embedding table.
    bytes_per_parameter, bytes_per_kv_element
        2 for bfloat16, 1 for 8-bit, 0.5 for 4-bit storage.
    experts, experts_per_token
        MLPs of a layer, and those that one token passes through; 1 and 1 for a dense model.
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
    experts: int = 1
    experts_per_token: int = 1

    def __post_init__(self) -> None:
        _require_positive(self)
        if self.q_heads % self.kv_heads:
            raise ValueError(
                f"q_heads is {self.q_heads}; it must be a multiple of kv_heads ({self.kv_heads})"
            )
        if self.experts_per_token > self.experts:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token}; it must be at most experts "
                f"({self.experts})"
            )

    @property
    def layer_parameters(self) -> int:
        """Matrix elements of all decoder layers: what every decoded token passes through."""
        return round(self._layers_with(self.experts_per_token))

    def layer_parameters_read(self, tokens: int) -> float:
        """Matrix elements of all decoder layers that a pass over ``tokens`` tokens reads.

        Of a mixture of experts as many as are expected if each token chose its own at random.
        """
        share = 1 - (1 - self.experts_per_token / self.experts) ** tokens
        return self._layers_with(self.experts * share)

    def _layers_with(self, experts: float) -> float:
        attention = 2 * self.hidden * self.head_dim * (self.q_heads + self.kv_heads)
        router = self.hidden * self.experts if self.experts > 1 else 0
        mlps = experts * 3 * self.hidden * self.intermediate
        return self.layers * (attention + router + mlps)

    @property
    def head_parameters(self) -> int:
        """Matrix elements of the output head, tied or not."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Matrix elements of the whole model, vision tower included."""
        tables = 1 if self.tied_embeddings else 2
        layers = round(self._layers_with(self.experts))
        return layers + tables * self.head_parameters + self.vision.parameters

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of keys and values that one token occupies over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_kv_element
