"""A lean forward of Qwen2.5-VL for training many small clips at once.

It runs on the weights of the transformers class and gives its logits, but a batch shares one
resolution and length, so that there is no Python loop over windows, and several questions share
one reading of their clip: each sees the clip and itself, not its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from benchmarks.tinyvid.model import TOKEN_SIDE, WINDOW

_CELLS = WINDOW // TOKEN_SIDE
"""Tokens along one side of a window."""


@dataclass(frozen=True)
class Layers:
    """How one block of each tower runs: (block, hidden, ...) -> hidden."""

    vision: Callable[..., Tensor]
    text: Callable[..., Tensor]


def vision_block(block: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One block of the vision tower over (windows, patches, width)."""
    attention = block.attn
    windows, length, _ = hidden.shape
    qkv = attention.qkv(_norm(block.norm1, hidden))
    qkv = qkv.view(windows, length, 3, attention.num_heads, attention.head_dim)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    out = F.scaled_dot_product_attention(_rotate(query, cos, sin), _rotate(key, cos, sin), value)
    hidden = hidden + attention.proj(out.transpose(1, 2).flatten(2))
    return hidden + _gated(block.mlp, _norm(block.norm2, hidden))


def text_layer(layer: nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    """One layer of the language model over (clips, length, width)."""
    attention = layer.self_attn
    clips, length, _ = hidden.shape
    normed = _norm(layer.input_layernorm, hidden)
    query, key, value = (
        projection(normed).view(clips, length, -1, attention.head_dim).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    groups = attention.num_key_value_groups
    out = F.scaled_dot_product_attention(
        _rotate(query, cos, sin),
        _rotate(key, cos, sin).repeat_interleave(groups, 1),
        value.repeat_interleave(groups, 1),
        attn_mask=mask,
    )
    hidden = hidden + attention.o_proj(out.transpose(1, 2).flatten(2))
    return hidden + _gated(layer.mlp, _norm(layer.post_attention_layernorm, hidden))


EAGER = Layers(vision_block, text_layer)


def compiled() -> Layers:
    """The same blocks fused by torch.compile, for any batch size and length."""
    return Layers(
        torch.compile(vision_block, dynamic=True), torch.compile(text_layer, dynamic=True)
    )


def vision_features(
    model: Qwen2_5_VLForConditionalGeneration, patches: Tensor, layers: Layers = EAGER
) -> Tensor:
    """Features of a batch of clips.

    Parameters
    ----------
    model : Qwen2_5_VLForConditionalGeneration
        Without full-attention blocks in its vision tower.
    patches : float tensor, shape (clips, grids, rows, columns, 4, 1176)
        Normalised pixels in the processor's order; rows and columns of tokens, multiples of 4.
    layers : Layers
        How the blocks run.

    Returns
    -------
    tensor, shape (clips, grids * rows * columns, hidden)
    """
    visual = model.model.visual
    clips, grids, rows, columns = patches.shape[:4]
    weight = visual.patch_embed.proj.weight
    hidden = F.linear(_to_windows(patches), weight.flatten(1))
    cos, sin = _vision_rotary(visual, rows, columns, clips * grids)
    for block in visual.blocks:
        hidden = layers.vision(block, hidden, cos, sin)
    merger = visual.merger
    merged = merger.mlp(_norm(merger.ln_q, hidden).unflatten(1, (-1, 4)).flatten(2))
    merged = merged.view(clips, grids, rows // _CELLS, columns // _CELLS, _CELLS, _CELLS, -1)
    return merged.permute(0, 1, 2, 4, 3, 5, 6).reshape(clips, grids * rows * columns, -1)


def text_hidden(
    model: Qwen2_5_VLForConditionalGeneration,
    embeddings: Tensor,
    positions: Tensor,
    mask: Tensor,
    layers: Layers = EAGER,
) -> Tensor:
    """Last hidden states of the language model.

    Parameters
    ----------
    embeddings : tensor, shape (clips, length, hidden)
        Of text and video tokens.
    positions : int tensor, shape (3, clips, length)
        M-RoPE ids.
    mask : bool tensor, shape (clips, 1, length, length) or broadcastable
        True where a row may look.
    layers : Layers
        How the blocks run.
    """
    language = model.model.language_model
    rotary = language.rotary_emb
    angles = positions[..., None].float() * rotary.inv_freq
    parts = angles.split(rotary.mrope_section, dim=-1)
    angle = torch.cat([part[i % 3] for i, part in enumerate(parts)], dim=-1)[:, None]
    cos, sin = angle.cos(), angle.sin()
    hidden = embeddings
    for layer in language.layers:
        hidden = layers.text(layer, hidden, cos, sin, mask)
    return _norm(language.norm, hidden)


def _to_windows(patches: Tensor) -> Tensor:
    """(windows, patches of a window, pixels), windows in row order within each grid."""
    clips, grids, rows, columns, unit, pixels = patches.shape
    split = patches.view(
        clips * grids, rows // _CELLS, _CELLS, columns // _CELLS, _CELLS, unit, pixels
    )
    return split.transpose(2, 3).reshape(-1, _CELLS * _CELLS * unit, pixels)


def _vision_rotary(
    visual: nn.Module, rows: int, columns: int, images: int
) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(2 * rows), torch.arange(2 * columns), indexing="ij")
    spots = torch.stack([y, x], -1).view(1, 1, rows, 2, columns, 2, 2).transpose(3, 4)
    spots = _to_windows(spots.reshape(1, 1, rows, columns, 4, 2)).float()
    inverse = visual.rotary_pos_emb.inv_freq
    angle = (spots[..., None] * inverse).flatten(-2)
    # Windows within a grid differ only by a shift, which attention does not see.
    angle = angle[:1, None]
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding; `cos` and `sin` hold the angles of the first half of the head."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _gated(mlp: nn.Module, hidden: Tensor) -> Tensor:
    return mlp.down_proj(F.silu(mlp.gate_proj(hidden)) * mlp.up_proj(hidden))


def _norm(norm: nn.Module, hidden: Tensor) -> Tensor:
    return F.rms_norm(hidden, (hidden.shape[-1],), norm.weight.to(hidden.dtype), 1e-6)
