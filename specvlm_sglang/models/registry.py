"""The families that are served, and which of them a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from specvlm_sglang.models.family import ModelFamily
from specvlm_sglang.models.glm_v import GlmV
from specvlm_sglang.models.internvl import InternVL
from specvlm_sglang.models.llava_onevision import LlavaOnevision
from specvlm_sglang.models.qwen2_5_vl import Qwen25VL
from specvlm_sglang.models.qwen2_vl import Qwen2VL
from specvlm_sglang.models.qwen3_vl import Qwen3VL
from specvlm_sglang.models.text import TextOnly
from specvlm_sglang.models.unserved import REASONS

FAMILIES: tuple[type[ModelFamily], ...] = (
    Qwen25VL,
    Qwen3VL,
    Qwen2VL,
    InternVL,
    GlmV,
    LlavaOnevision,
    TextOnly,
)


def family_of(architectures: Sequence[str], spatial_merge: int = 2) -> ModelFamily:
    """Return the adapter for a checkpoint's ``architectures``.

    Parameters
    ----------
    architectures
        As in the checkpoint's configuration.
    spatial_merge
        Patches per token along each side (``vision_config.spatial_merge_size``).

    Raises
    ------
    ValueError
        No adapter; the message names the model, and says why or what is served.
    """
    for family in FAMILIES:
        if any(name in family.architectures for name in architectures):
            return family(spatial_merge)
    for name in architectures:
        if name in REASONS:
            raise ValueError(f"SPECVLM does not serve {name}: {REASONS[name]}")
    served = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise ValueError(f"SPECVLM does not serve {', '.join(architectures)}; it serves {served}")
