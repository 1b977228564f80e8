"""InternVL's pixels in the dtype of its tower.

SGLang's processor makes bfloat16 pixels whatever ``--dtype`` says, and a convolution wants those of
its weights. On a GPU bfloat16 models need nothing; here float32 is served too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function


def install() -> None:
    """Cast pixels before the tower in this process; idempotent."""
    contract.require("internvl pixels")
    replace_function("sglang.srt.models.internvl", "InternVLChatModel.extract_feature", _cast)


def _cast(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def extract_feature(self: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        weight = self.vision_model.embeddings.patch_embedding.weight
        return original(self, pixel_values.to(weight.dtype))

    return extract_feature
