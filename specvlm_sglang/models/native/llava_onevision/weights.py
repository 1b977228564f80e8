"""Checkpoint names to parameters: transformers' present layout and the one that is published.

======================================  =============================================
transformers 4.52 and later             the published checkpoints
======================================  =============================================
``model.language_model.layers...``      ``language_model.model.layers...``
``lm_head.weight``                      ``language_model.lm_head.weight``
``model.vision_tower.encoder...``       ``vision_tower.vision_model.encoder...``
``model.multi_modal_projector...``      ``multi_modal_projector...``
``model.image_newline``                 ``image_newline``
======================================  =============================================
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from sglang.srt.model_loader.weight_utils import default_weight_loader
from sglang.srt.models.utils import WeightsMapper
from torch import nn

logger = logging.getLogger(__name__)

LANGUAGE = "language_model."
TOWER = "vision_tower."

NAMES = WeightsMapper(
    orig_to_new_prefix={
        "model.language_model.": f"{LANGUAGE}model.",
        "lm_head.": f"{LANGUAGE}lm_head.",
        "model.vision_tower.vision_model.": TOWER,
        "model.vision_tower.": TOWER,
        "vision_tower.vision_model.": TOWER,
        "model.multi_modal_projector.": "multi_modal_projector.",
        "model.image_newline": "image_newline",
    }
)
_FUSED = {"q_proj": "q", "k_proj": "k", "v_proj": "v"}


def load(model: Any, weights: Iterable[tuple[str, torch.Tensor]], tower_depth: int) -> None:
    """Load a checkpoint, or a part of one, into the model.

    Parameters
    ----------
    model
        `LlavaOnevisionForConditionalGeneration`.
    weights
        Names as in the checkpoint, and whole tensors; each rank takes its part.
    tower_depth
        Vision blocks that the model has; deeper ones are skipped.

    Raises
    ------
    ValueError
        A tensor that belongs nowhere.
    """
    own = {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith(LANGUAGE)
    }
    loaded: set[str] = set()

    def language() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in NAMES.apply(weights):
            if name.startswith(LANGUAGE):
                yield name.removeprefix(LANGUAGE), tensor
            elif not _unused(name, tower_depth):
                loaded.add(_load_one(own, name, tensor))

    model.language_model.load_weights(language())
    missing = own.keys() - loaded
    if missing and loaded:
        logger.warning("The checkpoint has no %s", ", ".join(sorted(missing)))


def _unused(name: str, tower_depth: int) -> bool:
    """Whether a tensor of the tower lies behind the features that the projector reads."""
    if name.startswith((f"{TOWER}post_layernorm.", f"{TOWER}head.")):
        return True
    block = re.match(rf"{re.escape(TOWER)}encoder\.layers\.(\d+)\.", name)
    return block is not None and int(block[1]) >= tower_depth


def _load_one(own: dict[str, nn.Parameter], name: str, tensor: torch.Tensor) -> str:
    target, shard = name, None
    if name.startswith(TOWER):
        target = name.replace(".self_attn.out_proj.", ".self_attn.proj.")
        for part, its_shard in _FUSED.items():
            if f".self_attn.{part}." in name:
                target, shard = name.replace(part, "qkv_proj"), its_shard
    parameter = own.get(target)
    if parameter is None:
        raise ValueError(f"the checkpoint's {name} belongs to no parameter of LLaVA-OneVision")
    loader = getattr(parameter, "weight_loader", default_weight_loader)
    if shard is None:
        loader(parameter, tensor)
    else:
        loader(parameter, tensor, shard)
    return target
