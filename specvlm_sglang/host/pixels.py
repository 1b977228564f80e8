"""A video's pixels on their way: SGLang moves them between host and GPU without waiting.

After the target has encoded an item, SGLang copies its pixels back to pinned host memory behind
what the GPU has queued. Until that copy is done the host's tensor holds whatever lay there before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from specvlm_sglang.host import contract


@contextmanager
def on_device(item: Any, device: torch.device, encode: Callable[..., Any]) -> Iterator[None]:
    """Within this context an item's pixels are complete, and on ``device`` where SGLang puts them.

    Parameters
    ----------
    item
        SGLang's ``MultimodalDataItem``; it keeps its host copy afterwards.
    device
        Of the model that encodes.
    encode
        What will encode it; SGLang looks for a mark on it that means "leave them on the host".
    """
    contract.require("pixels")
    from sglang.srt.managers import mm_schedule

    held = item.feature
    mm_schedule._move_items_to_device([item], device, encode)
    try:
        yield
    finally:
        item.feature = held
