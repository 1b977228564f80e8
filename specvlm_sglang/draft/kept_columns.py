"""Which tokens of its own KV cache a target reads while it drafts for itself.

A request's row of the target's request table says where its tokens' keys and values lie, column by
column. Its draft reads some of these columns: of the prompt the text and the kept video tokens,
and all that follows. Nothing is copied: a second table holds, for each row, the slots of these
columns one after another, and attention backends read it as they read the target's. A drafted
token's keys and values go where verification puts the exact ones right after.

    draft length = target length - dropped

Columns are noted once, at the draft's beginning. Slots are looked up at the head of each round,
since SGLang may give a prompt other slots later: those of an equal prompt in the radix cache.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from specvlm_sglang.draft.lengths import COLD, DraftLengths
from specvlm_sglang.host.batch_view import rows_of


class KeptColumns(DraftLengths):
    """The columns that each row's draft reads, and the table of their slots.

    Attached to the target's request table as its auxiliary cache
    (``ReqToTokenPool.attach_aux_cache``), whose ``free`` is called on finish, abort and
    retraction, and ``clear`` on flush.

    Parameters
    ----------
    req_to_token_pool
        The target's table, ``req_to_token`` int32 ``[rows, context length]``.
    target_capacity
        Slots of the target's pool, which stays the scheduler's measure of capacity.
    """

    slots_in_use = 0
    """KV slots of the draft's own: there are none."""
    capacity = 0
    """The same."""

    def __init__(self, req_to_token_pool: Any, *, target_capacity: int) -> None:
        target = req_to_token_pool.req_to_token
        super().__init__(target.shape[0], target.device, ahead=0)
        self.dense_capacity = target_capacity
        self.width: int = target.shape[1]
        self._target = target
        self._columns = torch.zeros_like(target)
        self.req_to_token_pool = copy.copy(req_to_token_pool)
        """As the target's, with slots of kept columns; all slots of a cold row are the dummy 0."""
        self.req_to_token_pool.req_to_token = torch.zeros_like(target)
        self._emptied: set[int] = set()

    def begin(self, row: int, kept: torch.Tensor, filled: int, mrope_delta: int) -> None:
        """Let the draft of ``row`` read these columns, and all behind the tokens filled so far.

        Parameters
        ----------
        row
            ``req_pool_idx``.
        kept
            int64 ``[K]`` ascending, on the device.
        filled
            Tokens that the target has processed; ``kept`` are among them.
        mrope_delta
            What a generated token's M-RoPE id is above its place in the target.

        Raises
        ------
        ValueError
            Nothing is kept: a draft reads a token at least.
        """
        self.free(row)
        self.settle()
        count = kept.shape[0]
        if not count:
            raise ValueError("none of the prompt's tokens are kept")
        own = self._columns[row]
        own[:count] = kept
        behind = torch.arange(filled, filled + self.width - count, device=own.device)
        own[count:] = behind.clamp(max=self.width - 1)
        self._warm_up(row, filled - count, mrope_delta)

    def follow(self, batch: Any) -> None:
        """Look up the slots of the rows of ``batch``, as far as the target has allocated any.

        Parameters
        ----------
        batch
            SGLang's ``ScheduleBatch``, at the head of a round; its slots are allocated.
        """
        self.settle()
        rows = batch.req_pool_indices.long()
        allocated = zip(rows_of(batch), batch.reqs, strict=True)
        longest = max(req.kv.kv_allocated_len - self._dropped[row] for row, req in allocated)
        width = min(max(longest, 1), self.width)
        slots = self._target[rows[:, None], self._columns[rows, :width].long()]
        is_warm = (self.offsets[rows] > COLD)[:, None]
        self.req_to_token_pool.req_to_token[rows, :width] = slots * is_warm

    # What ReqToTokenPool asks of its auxiliary cache.

    def free(self, row: int) -> None:
        """Forget the columns of ``row``; it is cold from now on. Idempotent, from any stream."""
        self._cool_down(row)
        self._emptied.add(row)

    def settle(self) -> None:
        """Do on the device what `free` noted; on the forward stream, behind what is queued."""
        for row in self._emptied:
            self._settle_cold(row)
            self.req_to_token_pool.req_to_token[row].zero_()
        self._emptied = set()

    def clear(self) -> None:
        """Forget everything (cache flush, when nothing is queued)."""
        for row, warm in enumerate(self._warm):
            if warm:
                self.free(row)

    def reset_allocator(self) -> None:
        """Called after the target's allocator was cleared; the draft has none."""
        self.clear()

    def alloc_to_lengths(self, *, req_pool_indices_cpu: Any, target_seq_lens_cpu: Any) -> None:
        """Called when the target allocates; the draft uses these slots."""
