"""M-RoPE deltas that lie on the device: SGLang's own are host tensors, one a request.

A pass over tokens that were generated numbers them by its request's delta. SGLang stacks the deltas
on the host in each of these passes and copies them, and the host waits for what is queued.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from specvlm_sglang.host.batch_view import rows_of


class MRopeDeltas:
    """A delta for each row of the request table, int64 ``[rows, 1]`` on the device.

    Parameters
    ----------
    rows
        Of the request table.
    device
        Where it lies.
    """

    def __init__(self, rows: int, device: torch.device | str) -> None:
        self.table = torch.zeros((rows, 1), dtype=torch.int64, device=device)

    def set(self, row: int, delta: int) -> None:
        """Note what a generated token's id is above its place; does not wait for the device."""
        self.table[row : row + 1] = delta

    @contextmanager
    def shown_in(self, batch: Any) -> Iterator[None]:
        """Show ``batch`` with these deltas where a request has pictures; its own return at the end.

        ``batch`` is SGLang's ``ScheduleBatch``.
        """
        held = batch.multimodal_inputs
        if any(mm_input is not None for mm_input in held or ()):
            batch.multimodal_inputs = self._stand_ins(rows_of(batch))
        try:
            yield
        finally:
            batch.multimodal_inputs = held

    def _stand_ins(self, rows: Sequence[int]) -> list[_OnDevice]:
        return [_OnDevice(self.table[row : row + 1]) for row in rows]


class _OnDevice:
    """A request's multimodal inputs as far as a pass over generated tokens reads them."""

    def __init__(self, delta: torch.Tensor) -> None:
        self.mrope_position_delta = delta
        self.mrope_positions = None
        self.mm_items: list[Any] = []

    def contains_image_inputs(self) -> bool:
        return False

    def contains_video_inputs(self) -> bool:
        return False

    def contains_audio_inputs(self) -> bool:
        return False
