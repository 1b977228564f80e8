"""The families that the conformance suite serves: what one needs beside its adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tests.support.checkpoints import DRAFT, DRAFT_VISION
from tests.support.family_hf import Reference
from tests.support.glm_checkpoints import glm4v
from tests.support.glm_hf import GlmReference
from tests.support.internvl_checkpoints import DRAFT_TOWER, LANGUAGES, internvl
from tests.support.internvl_hf import InternVLReference
from tests.support.qwen_vl_checkpoints import (
    QWEN2_VL_SIZE,
    QWEN3_DRAFT_VISION,
    qwen2_vl,
    qwen3_vl,
)

Build = Callable[[Path], Path]


@dataclass(frozen=True)
class Family:
    """One line of the suite.

    Attributes
    ----------
    name
        For test ids.
    target, draft
        Write checkpoints into a directory; the draft is narrower and pads its vocabulary.
    ending
        Tokens that end a video and ask nothing.
    reference
        transformers' side.
    quick
        Whether it is served in ``make test``; the others are slow.
    """

    name: str
    target: Build
    draft: Build
    ending: int = 0
    reference: Callable[[Path], Reference] = Reference
    quick: bool = False


NARROW = replace(DRAFT, layers=3, vocab_padding=50)
_QWEN2_DRAFT = partial(qwen2_vl, shape=NARROW, vision=DRAFT_VISION, seed=1)
_GLM_DRAFT = partial(glm4v, shape=NARROW, vision=DRAFT_VISION, seed=1)
_INTERNVL_DRAFT = partial(internvl, shape=NARROW, tower=DRAFT_TOWER, seed=1)
_QWEN3_DRAFT = partial(qwen3_vl, shape=NARROW, vision=QWEN3_DRAFT_VISION, seed=1)

FAMILIES = (
    Family("Qwen3-VL", qwen3_vl, _QWEN3_DRAFT, ending=2, quick=True),
    Family("Qwen3-VL-MoE", partial(qwen3_vl, experts=True), _QWEN3_DRAFT, ending=2),
    Family("Qwen2-VL", qwen2_vl, _QWEN2_DRAFT, reference=partial(Reference, size=QWEN2_VL_SIZE)),
    Family("GLM-V", glm4v, _GLM_DRAFT, ending=1, reference=GlmReference),
    Family("GLM-V-MoE", partial(glm4v, experts=True), _GLM_DRAFT, ending=1, reference=GlmReference),
    *(
        Family(
            f"InternVL-{language}",
            partial(internvl, language=language),
            _INTERNVL_DRAFT,
            ending=2,
            reference=InternVLReference,
        )
        for language in LANGUAGES
    ),
)
