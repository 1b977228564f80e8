"""InternVL's placeholders get the key of the item that they belong to.

SGLang 0.5.23 counts ``<img>`` in the prompt and takes the items in the order of its processor,
images first. Where a video comes before an image, rows and features then do not fit, and the
forward pass ends the scheduler. Items say themselves where they are.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function


def install_in_scheduler() -> None:
    """Pad by the items' own places in this process; idempotent."""
    contract.require("internvl padding")
    replace_function(
        "sglang.srt.models.internvl", "InternVLChatModel.pad_input_ids", _by_their_places
    )


def _by_their_places(_: Callable[..., Any]) -> Callable[..., Any]:
    def pad_input_ids(self: Any, input_ids: array[int], mm_inputs: Any) -> array[int]:
        from sglang.srt.managers.mm_utils import pad_mm_tokens

        padded: array[int] = pad_mm_tokens(input_ids, mm_inputs)
        return padded

    return pad_input_ids
