"""The draft's private KV cache: its own rows' contents, lengths, slots and pool.

Rows are numbered as the target's (``req_pool_idx``), so a batch needs no translation; what a row
holds is ours. For a request whose draft prompt left out ``dropped`` of the target's prompt tokens,

    draft length = target length + 1 - dropped

from its prefill to its end: the draft also holds the newest token, which the target has emitted
but not yet processed. A *cold* row has no draft KV: it reads and writes the pool's dummy slot 0,
its drafts are noise, and verification decodes plainly.

Under overlap scheduling SGLang frees a finished request's row from another stream while the next
step, which still has the request, is queued. What the queued kernels read must then stay as the
host saw it when it planned them. So `free` only notes what is to be returned, and the device's
part follows on the forward stream, before the next thing that is planned there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from specvlm_sglang.copies import LateFlag
from specvlm_sglang.draft.inputs import DraftPrompt
from specvlm_sglang.draft.lengths import DraftLengths
from specvlm_sglang.draft.prefixes import CACHED_SHARE, Prefix, Prefixes, PrefixKey

GROWTH = 64
"""Slots that a row takes at once where there are plenty: two launches each time that it grows."""


class DraftKVCache(DraftLengths):
    """Rows, lengths and slots of the draft, freed by SGLang whenever it frees a request's row.

    Attached to the target's request table as its auxiliary cache
    (``ReqToTokenPool.attach_aux_cache``), whose ``free`` is called on finish, abort and
    retraction, and ``clear`` on flush.

    Parameters
    ----------
    req_to_token_pool
        The draft's own table, ``req_to_token`` int32 ``[rows, draft context length]``.
    allocator
        The draft's own slot allocator (``BaseTokenToKVPoolAllocator``).
    target_capacity
        Slots of the target's pool, which stays the scheduler's measure of capacity.
    """

    def __init__(self, req_to_token_pool: Any, allocator: Any, *, target_capacity: int) -> None:
        self.req_to_token_pool = req_to_token_pool
        self.allocator = allocator
        self.dense_capacity = target_capacity
        self.page_size: int = allocator.page_size
        self.capacity: int = allocator.available_size()
        table = req_to_token_pool.req_to_token
        self.width: int = table.shape[1]
        rows = table.shape[0]
        super().__init__(rows, table.device, ahead=1)
        self._slots: list[list[torch.Tensor]] = [[] for _ in range(rows)]
        self._allocated = [0] * rows
        self.prefixes = Prefixes(int(CACHED_SHARE * self.capacity))
        """Beginnings of prompts that several rows may read, one after another or together."""
        self._readers: dict[int, Prefix] = {}
        self._returned: list[torch.Tensor] = []
        self._emptied: set[int] = set()
        self.on_freed: Callable[[], None] = lambda: None
        """Told when a row that held slots gave them back."""

    @property
    def slots_in_use(self) -> int:
        """Slots that rows read now; those of a prefix count once."""
        read = list(self._readers.values())
        shared = {id(prefix): prefix.held for prefix in read}
        return sum(self._allocated) - sum(one.held for one in read) + sum(shared.values())

    @property
    def slots_free(self) -> int:
        """Slots that can be handed out: free, waiting for `settle`, kept for further questions."""
        waiting = sum(len(slots) for slots in self._returned)
        return int(self.allocator.available_size()) + waiting + self.prefixes.unused

    def admit(
        self,
        row: int,
        *,
        draft_length: int,
        target_length: int,
        mrope_delta: int = 0,
        prefix: Prefix | None = None,
    ) -> bool:
        """Give ``row`` room for its draft prompt.

        Parameters
        ----------
        row
            ``req_pool_idx``.
        draft_length
            Tokens of the draft's prompt, the target's first token included.
        target_length
            Tokens of the target's prompt.
        mrope_delta
            What a generated token's M-RoPE id is above its place in the target.
        prefix
            One of `prefixes`, whose slots are the row's first.

        Returns
        -------
        bool
            False where the pool or the row is too short; the row is then cold.
        """
        self.free(row)
        self.settle()
        if prefix is not None:
            self._read(row, prefix)
        if not self._grow(row, draft_length):
            self.free(row)
            return False
        self._warm_up(row, target_length + 1 - draft_length, mrope_delta)
        return True

    def _read(self, row: int, prefix: Prefix) -> None:
        prefix.users += 1
        self._readers[row] = prefix
        self._allocated[row] = prefix.held
        self.req_to_token_pool.req_to_token[row, : prefix.held] = prefix.slots.to(torch.int32)

    def share(
        self,
        row: int,
        key: PrefixKey,
        prompt: DraftPrompt,
        tokens: int,
        filled: int,
        *,
        fallback: LateFlag | None = None,
    ) -> None:
        """Keep the first ``tokens`` of a row's draft prompt for other requests.

        Parameters
        ----------
        row
            Whose prompt is prefilled, without any prefix.
        key
            Under which `prefixes` knows them.
        prompt
            The row's draft prompt, from its first token on.
        tokens
            How many, of which whole pages stay in the cache.
        filled
            Tokens of the target's prompt that they stand for.
        fallback
            Whether the policy had nothing to rank by, where that may be.
        """
        whole = tokens // self.page_size * self.page_size
        if not whole or whole > self.prefixes.capacity or self.prefixes.knows(key):
            return
        slots = torch.cat(self._slots[row])
        self._slots[row] = [slots[whole:]] if whole < slots.shape[0] else []
        tail = prompt.part(whole, tokens).copied() if tokens > whole else None
        prefix = Prefix(slots[:whole].clone(), tail, filled, fallback, users=1)
        self._readers[row] = prefix
        self._return(self.prefixes.add(key, prefix))

    def _return(self, slots: list[torch.Tensor]) -> None:
        """Give slots back now; on the forward stream, behind what is queued."""
        if slots:
            # Whole pages, each row's one after another: no page needs to be looked for.
            self.allocator.free_segment(torch.cat(slots), start_pos=0)

    def reserve(self, rows: Sequence[int], target_lengths: Sequence[int]) -> list[int]:
        """Grow warm rows to hold what the target has allocated for them.

        Parameters
        ----------
        rows
            ``req_pool_idx`` of the batch.
        target_lengths
            Per row, the slots that the target holds (committed tokens and its reserve).

        Returns
        -------
        list of int
            Rows that went cold because the pool is exhausted or the draft's context ended.
        """
        self.settle()
        gone_cold = []
        for row, target_length in zip(rows, target_lengths, strict=True):
            if self._warm[row] and not self._grow_ahead(
                row, target_length + 1 - self._dropped[row]
            ):
                self.free(row)
                self.settle()
                gone_cold.append(row)
        return gone_cold

    def _grow_ahead(self, row: int, length: int) -> bool:
        """Grow to ``length``, and for some rounds to come while half of the pool is free."""
        ahead = self._allocated[row] + GROWTH
        is_ample = 2 * (self.allocator.available_size() - GROWTH) > self.capacity
        if self._allocated[row] < length < ahead <= self.width and is_ample:
            length = ahead
        return self._grow(row, length)

    def _grow(self, row: int, length: int) -> bool:
        missing = length - self._allocated[row]
        if missing <= 0:
            return True
        missing = -(-missing // self.page_size) * self.page_size
        start = self._allocated[row]
        if start + missing > self.width:
            return False
        free = self.allocator.available_size()
        if missing > free + self.prefixes.unused:
            # Nothing is forgotten for what would not fit all the same.
            return False
        self._return(self.prefixes.make_room(missing - free))
        slots = self.allocator.alloc(missing)
        if slots is None:
            return False
        self.req_to_token_pool.req_to_token[row, start : start + missing] = slots.to(torch.int32)
        self._slots[row].append(slots)
        self._allocated[row] = start + missing
        return True

    # What ReqToTokenPool asks of its auxiliary cache.

    def free(self, row: int) -> None:
        """Take back the slots of ``row``; it is cold from now on. Idempotent, from any stream."""
        held, prefix = self._slots[row], self._readers.pop(row, None)
        if prefix is not None:
            prefix.users -= 1
            if prefix.is_forgotten and not prefix.users:
                held = [*held, prefix.slots]
        self._returned += held
        self._slots[row] = []
        self._allocated[row] = 0
        self._cool_down(row)
        self._emptied.add(row)
        if held:
            self.on_freed()

    def settle(self) -> None:
        """Do on the device what `free` noted; on the forward stream, behind what is queued."""
        self._return(self._returned)
        self._returned = []
        for row in self._emptied:
            self._settle_cold(row)
            # A cold row reads and writes the dummy slot.
            self.req_to_token_pool.req_to_token[row].zero_()
        self._emptied = set()

    def clear(self) -> None:
        """Give back everything (cache flush, when nothing is queued).

        Only noted: SGLang flushes on another stream than the one that reads the slots.
        """
        for row, allocated in enumerate(self._allocated):
            if allocated:
                self.free(row)
        self._returned += self.prefixes.clear()

    def reset_allocator(self) -> None:
        """Called after the target's allocator was cleared; ours is emptied row by row."""
        self.clear()

    def alloc_to_lengths(self, *, req_pool_indices_cpu: Any, target_seq_lens_cpu: Any) -> None:
        """Called when the target allocates; the draft's slots are taken at its own prefill."""
