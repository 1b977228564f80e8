"""Random weights whose greedy text varies, depends on the prompt and is not near-tied.

A transformer initialised the usual way (std 0.02) repeats one token for ever. Here the residual
stream starts from token vectors of a common low-rank table and every block adds a contribution of
a chosen size; attention is peaked, so that single prompt tokens, video tokens included, matter.
Models made with the same `family` read and write the same token vectors whatever their width, so
that a draft agrees with its target on part of the tokens, as trained pairs do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

RANK = 64
LOGIT_STD = 4.0


_LAST_OF_VISION = (
    "merger.mlp.2.weight",
    "merger.linear_fc2.weight",
    "merger.down_proj.weight",
    "multi_modal_projector.linear_2.weight",
)
"""Projections whose output enters the language model."""
_DEEPSTACK = re.compile(r"deepstack_merger_list\.\d+\.linear_fc2\.weight$")

_NORMS_BEHIND = {
    "post_self_attn_layernorm.weight": "attention",
    "post_mlp_layernorm.weight": "mlp",
}
"""Of GLM: norms of a block's output, by what of `Mixing` they carry."""


@dataclass(frozen=True)
class Mixing:
    """How loud the parts of a random model are, relative to the current token's own vector.

    Attributes
    ----------
    attention, mlp : float
        Standard deviation that all attention (MLP) blocks together add to one residual element.
    peak : float
        Standard deviation of the attention logits: 0 averages over the prompt, large picks.
    """

    attention: float = 0.4
    mlp: float = 0.1
    peak: float = 4.0


class _Draws:
    """Normal draws from one seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=self._generator) * std

    def orthonormal_rows(self, rows: int, columns: int) -> Tensor:
        columns_first: Tensor = torch.linalg.qr(self.normal(columns, rows))[0]
        return columns_first.T


def _fill(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.data.copy_(value.to(parameter.dtype))


def _linear(draws: _Draws, parameter: nn.Parameter, gain: float, fan_in: int = 0) -> None:
    fan_in = fan_in or math.prod(parameter.shape[1:])
    _fill(parameter, draws.normal(*parameter.shape, std=gain / math.sqrt(fan_in)))


def _gain(name: str, layers: int, mixing: Mixing) -> float:
    """Standard deviation of a projection's outputs for inputs of standard deviation one."""
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        return math.sqrt(mixing.peak)
    if name.endswith("o_proj.weight"):
        return mixing.attention / math.sqrt(layers)
    if name.endswith(("down_proj.weight", "experts.down_proj")):
        # silu(gate) * up of two unit normals has a standard deviation of about 0.6
        return mixing.mlp / math.sqrt(layers) / 0.6
    return 1.0


def randomise(
    model: PreTrainedModel,
    *,
    speakable: Sequence[int],
    sample: Sequence[int],
    vocabulary: int,
    seed: int,
    family: int,
    mixing: Mixing,
) -> None:
    """Overwrite every parameter of a Qwen, LLaVA-OneVision or InternVL model, in place.

    Parameters
    ----------
    model : PreTrainedModel
        With untied embeddings and a language width of at least `RANK`.
    speakable : sequence of int
        Token ids the model may say; the output rows of all others are zero, which is far below
        the largest of the spoken logits (standard deviation `LOGIT_STD`).
    sample : sequence of int
        Token ids to calibrate the logits on (any plausible prompt).
    vocabulary : int
        Tokens of the tokenizer; what a model has beyond is padding, and zero.
    seed : int
        Of everything but the token tables.
    family : int
        Of the token tables.
    mixing : Mixing
        Of the language blocks.

    Raises
    ------
    ValueError
        If the language width is below `RANK`.
    """
    text = model.config.get_text_config()
    width, vocab = text.hidden_size, text.vocab_size
    if width < RANK:
        raise ValueError(f"hidden must be at least {RANK}, got {width}")
    tables = _Draws(family)
    read, write = (
        torch.cat([tables.normal(vocabulary, RANK), torch.zeros(vocab - vocabulary, RANK)])
        for _ in range(2)
    )
    draws = _Draws(seed)
    basis = draws.orthonormal_rows(RANK, width)

    layers = text.num_hidden_layers
    for name, parameter in model.named_parameters():
        in_vision = any(tower in f".{name}" for tower in (".visual.", ".vision_tower."))
        if name.endswith("embed_tokens.weight"):
            _fill(parameter, read @ basis)
        elif name.endswith("lm_head.weight"):
            rows = torch.zeros(vocab, width)
            rows[list(speakable)] = (write @ basis)[list(speakable)]
            _fill(parameter, rows)
        elif name.endswith("image_newline"):
            _fill(parameter, draws.normal(width, std=math.sqrt(RANK / width)))
        elif name.endswith("bias"):
            _fill(parameter, draws.normal(*parameter.shape, std=0.1))
        elif not in_vision and name.endswith(("q_norm.weight", "k_norm.weight")):
            # After such a norm the projection's own gain is lost.
            peak = math.sqrt(mixing.peak)
            _fill(parameter, peak * (1 + draws.normal(*parameter.shape, std=0.05)))
        elif name.endswith(tuple(_NORMS_BEHIND)):
            # Here the norm alone says how loud a block is.
            block = _NORMS_BEHIND[name.rpartition(".layers.")[2].partition(".")[2]]
            loudness = getattr(mixing, block) / math.sqrt(layers)
            _fill(parameter, loudness * (1 + draws.normal(*parameter.shape, std=0.05)))
        elif parameter.dim() == 1:
            _fill(parameter, 1 + draws.normal(*parameter.shape, std=0.05))
        elif name.endswith(_LAST_OF_VISION) or _DEEPSTACK.search(name):
            # as long as a token vector, spread over all dimensions of the residual stream
            loud = 1.0 if "deepstack" in name else 2.0
            _linear(draws, parameter, loud * math.sqrt(RANK / width))
        elif ".experts." in name:
            _linear(draws, parameter, _gain(name, layers, mixing), fan_in=parameter.shape[-1])
        else:
            _linear(draws, parameter, 1.0 if in_vision else _gain(name, layers, mixing))
    _calibrate(model, speakable, sample)


@torch.no_grad()
def _calibrate(model: PreTrainedModel, speakable: Sequence[int], prompt: Sequence[int]) -> None:
    logits = model(input_ids=torch.tensor([list(prompt)])).logits[0, :, list(speakable)]
    model.get_output_embeddings().weight.mul_(LOGIT_STD / logits.float().std().item())
