"""The SigLIP tower and the projector, on SGLang's layers.

Both are tensor parallel: heads and MLP columns of the tower (``sglang.srt.models.siglip``), and the
projector's hidden width, are split over the ranks. They stay unquantised.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sglang.srt.layers.linear import ColumnParallelLinear, RowParallelLinear
from sglang.srt.models.siglip import SiglipEncoder, SiglipVisionEmbeddings
from sglang.srt.utils import add_prefix
from torch import nn
from transformers.activations import ACT2FN

# Tiles or frames per pass: bounds the MLP's activations (32 x 729 x 4304 values) in long videos.
_BATCH = 32


class SiglipFeatures(nn.Module):
    """Hidden states of a SigLIP vision tower, computed no deeper than wanted.

    Parameters
    ----------
    config
        ``SiglipVisionConfig``.
    layers
        Which hidden states to return: 0 is the embeddings, n the output of the n-th block,
        negative numbers count from the last block. No final normalisation, as in transformers.
    prefix
        Of the parameters' names.

    Raises
    ------
    ValueError
        A layer that the tower does not have.
    """

    def __init__(self, config: Any, layers: tuple[int, ...], prefix: str = "") -> None:
        super().__init__()
        depth = config.num_hidden_layers
        for layer in layers:
            if not -depth - 1 <= layer <= depth:
                raise ValueError(
                    f"vision_feature_layer={layer} must lie in [{-depth - 1}, {depth}]: the tower "
                    f"has {depth} layers"
                )
        self._wanted = tuple(layer if layer >= 0 else depth + 1 + layer for layer in layers)
        shallow = copy.copy(config)
        shallow.num_hidden_layers = max(self._wanted)
        self.depth: int = shallow.num_hidden_layers
        self.embeddings = SiglipVisionEmbeddings(shallow)
        self.encoder = SiglipEncoder(
            shallow,
            act_layer=_activation(config.hidden_act),
            # Images of one size: a batch dimension says where each of them ends.
            flatten_batch=False,
            prefix=add_prefix("encoder", prefix),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Parameters
        ----------
        pixels
            ``[images, 3, image_size, image_size]``, normalised.

        Returns
        -------
        torch.Tensor
            ``[images, patches, hidden * len(layers)]``.
        """
        return torch.cat([self._encode(batch) for batch in torch.split(pixels, _BATCH)])

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        weight = self.embeddings.patch_embedding.weight
        hidden = self.embeddings(pixels.to(device=weight.device, dtype=weight.dtype))
        states = {0: hidden}
        for number, block in enumerate(self.encoder.layers, start=1):
            hidden = block(hidden, None, None)
            if number in self._wanted:
                states[number] = hidden
        return torch.cat([states[number] for number in self._wanted], dim=-1)


class Projector(nn.Module):
    """Two linear layers from the tower's width to the language model's.

    Parameters
    ----------
    config
        ``LlavaOnevisionConfig``.
    inputs
        Width of the tower's features.
    """

    def __init__(self, config: Any, inputs: int, prefix: str = "") -> None:
        super().__init__()
        hidden = config.text_config.hidden_size
        bias = config.multimodal_projector_bias
        self.linear_1 = ColumnParallelLinear(
            inputs, hidden, bias=bias, prefix=add_prefix("linear_1", prefix)
        )
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = RowParallelLinear(
            hidden, hidden, bias=bias, prefix=add_prefix("linear_2", prefix)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project ``[..., inputs]`` to ``[..., hidden]``."""
        between, _ = self.linear_1(features)
        projected: torch.Tensor = self.linear_2(self.act(between))[0]
        return projected


def _activation(name: str) -> Callable[[], nn.Module]:
    if name == "gelu_pytorch_tanh":
        return partial(nn.GELU, approximate="tanh")
    return lambda: ACT2FN[name]
