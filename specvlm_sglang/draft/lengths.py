"""How long each row's draft is: the target's length, and what the draft never saw.

Of a request whose draft left out ``dropped`` of the target's prompt tokens,

    draft length = target length + ahead - dropped

from its beginning to its end. A *cold* row has no draft.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from specvlm_sglang.host.batch_view import rows_of
from specvlm_sglang.host.mrope import MRopeDeltas

COLD = -(2**40)
"""Offset of a row without a draft: with any target's length it is below every draft length."""


class DraftLengths:
    """Lengths and positions of the draft by row of the target's request table (``req_pool_idx``).

    Parameters
    ----------
    rows
        Of the table.
    device
        Where the tables of this class lie.
    ahead
        Tokens that a draft holds at the head of a round and the target does not.
    """

    def __init__(self, rows: int, device: torch.device | str, *, ahead: int) -> None:
        self._ahead = ahead
        # Host copies decide without waiting for the device.
        self._warm = [False] * rows
        self._dropped = [0] * rows
        self.offsets = torch.full((rows,), COLD, dtype=torch.int64, device=device)
        """Draft length minus target length, per row; `COLD` for rows without a draft."""
        self.mrope_deltas = MRopeDeltas(rows, device)
        """What a drafted token's M-RoPE id is above its place in the draft, per row; 0 if cold."""

    def is_warm(self, row: int) -> bool:
        """Whether ``row`` has a draft."""
        return self._warm[row]

    def dropped(self, row: int) -> int:
        """Prompt tokens that ``row``'s draft never saw."""
        return self._dropped[row]

    def lengths(self, rows: torch.Tensor, target_lengths: torch.Tensor) -> torch.Tensor:
        """Return the draft lengths of ``rows``, int64, on the device; 1 for cold rows."""
        rows = rows.long()
        return (target_lengths.long() + self.offsets[rows]).clamp(min=1)

    def host_lengths(self, rows: Sequence[int], target_lengths: torch.Tensor) -> torch.Tensor:
        """Return the same on the host, from host lengths (int64 CPU tensor)."""
        offsets = [self._ahead - self._dropped[row] for row in rows]
        lengths = target_lengths.long() + torch.tensor(offsets, dtype=torch.int64)
        return torch.where(torch.tensor([self._warm[row] for row in rows]), lengths, 1)

    def missing(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the prompt tokens that the draft of each row never saw, int64, on the device."""
        offsets = self.offsets[rows.long()]
        return torch.where(offsets > COLD, self._ahead - offsets, 0)

    @contextmanager
    def as_seen_by_draft(self, batch: Any) -> Iterator[None]:
        """Show ``batch`` with the draft's lengths and positions; the target's return at the end.

        Replaces ``seq_lens``, ``seq_lens_cpu``, ``seq_lens_sum`` and the M-RoPE deltas.
        """
        saved = {
            name: getattr(batch, name)
            for name in (
                "seq_lens",
                "seq_lens_cpu",
                "seq_lens_sum",
                "out_cache_loc",
            )
        }
        self.settle()
        rows = rows_of(batch)
        batch.seq_lens = self.lengths(batch.req_pool_indices, batch.seq_lens)
        if batch.seq_lens_cpu is not None:
            batch.seq_lens_cpu = self.host_lengths(rows, batch.seq_lens_cpu)
            batch.seq_lens_sum = int(batch.seq_lens_cpu.sum())
        try:
            with self.mrope_deltas.shown_in(batch):
                yield
        finally:
            for name, value in saved.items():
                setattr(batch, name, value)

    def settle(self) -> None:
        """Do on the device what the host has noted; on the forward stream."""
        raise NotImplementedError

    def _warm_up(self, row: int, dropped: int, mrope_delta: int) -> None:
        """``row`` has a draft now; ``mrope_delta`` is the target's."""
        self._dropped[row] = dropped
        self._warm[row] = True
        # Ranges of one row: assigning to a single element waits for the device.
        self.offsets[row : row + 1] = self._ahead - dropped
        self.mrope_deltas.set(row, mrope_delta + dropped)

    def _cool_down(self, row: int) -> None:
        """The host's part of losing a draft."""
        self._dropped[row] = 0
        self._warm[row] = False

    def _settle_cold(self, row: int) -> None:
        """The device's part."""
        self.offsets[row : row + 1] = COLD
        self.mrope_deltas.set(row, 0)
