"""The calls that attend for a batch, worked out once per forward pass and run in every layer.

KV slots of one request mostly follow each other in the pool, so a slice of the pool serves as keys
without a copy; what is scattered is gathered. Query heads that share a KV head become rows of one
product, so that the keys are read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from specvlm_sglang.cpu.attention import ops
from specvlm_sglang.cpu.attention.requests import RequestKeys

# Up to so many rows, the heads of a KV group are folded into the rows. Beyond, the product is large
# enough anyway, and the kernel's own causal form, which skips masked blocks, needs them apart.
FOLDED_ROWS = 32
# Requests with so few keys are padded into one call: its gather costs less than their calls.
PADDED_KEYS = 128
# A run of slots this long is read in place beside gathered ones; shorter runs are gathered too,
# since one more call and the merge cost as much as the copy.
LONG_RUN = 1024
# A run of at least so many keys is cut into parts that threads share: one product per KV head alone
# would leave most cores idle, and each head's pass over a long run finds nothing left in the cache.
PARTED_RUN = 4096
PART_KEYS = 512
# Mask entries up to which one masked call beats a call for the context and one for the tail.
MASK_ENTRIES = 1 << 22
# Rows a call under a sliding window, which bounds its mask and the keys outside the rows' windows.
WINDOW_ROWS = 256


class PlanOptions(NamedTuple):
    """What the calls depend on besides the batch; layers that agree share them.

    Attributes
    ----------
    window
        Keys before its own that a row sees; -1: all.
    bidirectional
        Every row sees all keys of its request.
    group
        Query heads per KV head.
    dtype
        Of the queries.
    """

    window: int
    bidirectional: bool
    group: int
    dtype: torch.dtype


@dataclass(frozen=True)
class KeySet:
    """Some keys of a call.

    Attributes
    ----------
    slots
        A slice of the pool, or the slots ``[batch * keys]`` to gather.
    mask, causal
        As `ops.attend` takes them.
    parts
        Equal parts to attend to on their own and to merge.
    """

    slots: slice | torch.Tensor
    mask: torch.Tensor | None = None
    causal: bool = False
    parts: int = 1

    def take(self, pool: torch.Tensor, batch: int, dtype: torch.dtype) -> torch.Tensor:
        """``[batch, kv_heads, keys, head_dim]`` out of a pool ``[slots, kv_heads, head_dim]``."""
        slots = self.slots
        taken = pool[slots] if isinstance(slots, slice) else pool.index_select(0, slots)
        if taken.dtype != dtype:
            taken = taken.to(dtype)
        return taken.view(batch, -1, *pool.shape[1:]).transpose(1, 2)


@dataclass(frozen=True)
class Call:
    """Attention of some rows of the batch: one request, or several padded to equal shapes.

    Attributes
    ----------
    rows
        The rows in the flat queries, ``batch`` times equally many.
    batch
        Number of requests.
    folded
        Heads of a KV group are folded into the rows, row by row (the masks are built for it).
    keys
        Disjoint key sets whose union the rows see; several, or parted ones, only of one request.
    """

    rows: slice | torch.Tensor
    batch: int
    folded: bool
    keys: Sequence[KeySet]

    def run(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        k_pool: torch.Tensor,
        v_pool: torch.Tensor,
        scale: float,
        logit_cap: float,
    ) -> None:
        """Write the rows' attention to ``out``.

        Parameters
        ----------
        q, out
            ``[all rows, heads, head_dim]`` and ``[all rows, heads, v_head_dim]``.
        k_pool, v_pool
            ``[slots, kv_heads, head_dim]`` and ``[slots, kv_heads, v_head_dim]``.
        scale, logit_cap
            As `ops.attend` takes them.
        """
        rows, batch = self.rows, self.batch
        heads, kv_heads, width = q.shape[1], k_pool.shape[1], v_pool.shape[2]
        group = heads // kv_heads
        taken = q[rows] if isinstance(rows, slice) else q.index_select(0, rows)
        if self.folded:
            taken = taken.view(batch, -1, kv_heads, group, q.shape[2]).transpose(1, 2).flatten(2, 3)
        else:
            taken = taken.view(batch, -1, heads, q.shape[2]).transpose(1, 2)
        parts = [
            ops.attend(
                taken if keys.parts == 1 else taken.expand(keys.parts, -1, -1, -1),
                keys.take(k_pool, batch * keys.parts, q.dtype),
                keys.take(v_pool, batch * keys.parts, q.dtype),
                scale,
                keys.mask,
                keys.causal,
                logit_cap,
            )
            for keys in self.keys
        ]
        in_one = len(self.keys) == 1 and self.keys[0].parts == 1
        attended = parts[0][0] if in_one else ops.merge(parts)
        if self.folded:
            attended = attended.view(batch, kv_heads, -1, group, width)
        attended = attended.transpose(1, 2).reshape(-1, heads, width)
        if isinstance(rows, slice):
            out[rows] = attended
        else:
            out.index_copy_(0, rows, attended)


def plan_calls(requests: Sequence[RequestKeys], options: PlanOptions) -> list[Call]:
    """Work out the calls that attend for ``requests``."""
    calls: list[Call] = []
    short: dict[int, list[RequestKeys]] = {}
    for request in requests:
        if request.rows <= FOLDED_ROWS and len(request.slots) <= PADDED_KEYS:
            short.setdefault(request.rows, []).append(request)
        else:
            calls += _calls_of(request, options)
    for alike in short.values():
        if len(alike) == 1:
            calls += _calls_of(alike[0], options)
        else:
            calls.append(_padded_call(alike, options))
    return calls


def _padded_call(requests: list[RequestKeys], options: PlanOptions) -> Call:
    rows = requests[0].rows
    keys = max(len(request.slots) for request in requests)
    visible = torch.zeros(len(requests), rows, keys, dtype=torch.bool)
    # Padding repeats a slot of the same request: what lies there is finite, as a mask needs.
    slots = torch.stack([request.slots[:1].long().expand(keys) for request in requests])
    for i, request in enumerate(requests):
        slots[i, : len(request.slots)] = request.slots
        visible[i, :, : len(request.slots)] = _visible(request, options, first=0)
    index = torch.cat(
        [torch.arange(request.first_row, request.first_row + rows) for request in requests]
    )
    key_set = KeySet(slots.flatten(), _additive(visible, options, folded=True))
    return Call(_span(index), len(requests), True, [key_set])


def _calls_of(request: RequestKeys, options: PlanOptions) -> list[Call]:
    rows = slice(request.first_row, request.first_row + request.rows)
    folded = request.rows <= FOLDED_ROWS
    depths = request.row_depths()
    first = 0
    if 0 <= options.window < request.context + int(depths.max()):
        if options.bidirectional:
            raise NotImplementedError(
                f"bidirectional attention within a sliding window of {options.window} tokens "
                f"over a sequence of {len(request.slots)}"
            )
        if request.tail is None and request.rows > WINDOW_ROWS:
            starts = range(0, request.rows, WINDOW_ROWS)
            blocks = [
                request.block(start, min(request.rows, start + WINDOW_ROWS)) for start in starts
            ]
            return [call for block in blocks for call in _calls_of(block, options)]
        first = max(0, request.context + int(depths.min()) - options.window)
        if request.rows > 1:
            visible = _visible(request, options, first)
            mask = _additive(visible[None], options, folded)
            return [Call(rows, 1, folded, [KeySet(_span(request.slots[first:]), mask)])]
    return [Call(rows, 1, folded, _key_sets(request, first, options, folded))]


def _key_sets(request: RequestKeys, first: int, options: PlanOptions, folded: bool) -> list[KeySet]:
    """Key sets of a request without windows, or of a single row from its window's ``first`` on."""
    slots = request.slots[first:]
    if options.bidirectional or (request.rows == 1 and request.tail is None):
        return _unmasked(slots, folded)
    context = request.context - first
    chain = request.tail is None
    mask_rows = request.rows * (options.group if folded else 1)
    if (chain and not folded) or mask_rows * len(slots) > MASK_ENTRIES:
        key_sets = _unmasked(slots[:context], folded)
        if chain and not folded:
            key_sets.append(KeySet(_span(slots[context:]), causal=True))
        else:
            visible = _visible(request, options, request.context)
            mask = _additive(visible[None], options, folded)
            key_sets.append(KeySet(_span(slots[context:]), mask))
        return key_sets
    runs, rest = _long_runs(slots, context, folded)
    # What was left out of the rest is context; all rows see every other context key too.
    visible = _visible(request, options, request.context - (len(rest) - (len(slots) - context)))
    rest_set = KeySet(_span(rest), _additive(visible[None], options, folded))
    return [*runs, rest_set]


def _unmasked(slots: torch.Tensor, parted: bool) -> list[KeySet]:
    key_sets, rest = _long_runs(slots, len(slots), parted)
    if len(rest):
        key_sets.append(KeySet(_span(rest)))
    return key_sets


def _long_runs(
    slots: torch.Tensor, context: int, parted: bool
) -> tuple[list[KeySet], torch.Tensor]:
    """Key sets of the long runs among the first ``context`` slots, and the slots in none.

    Slots that form one single run are all left to the rest, unless it is cut into parts.
    """
    numbers = slots.numpy()
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    if not len(breaks) and not (parted and context >= PARTED_RUN):
        return [], slots
    edges = np.unique(np.concatenate([[0], breaks[breaks < context], [context]]))
    key_sets = []
    in_rest = np.ones(len(numbers), dtype=bool)
    for edge, length in zip(edges[:-1].tolist(), np.diff(edges).tolist(), strict=True):
        if length < LONG_RUN:
            continue
        parts = length // PART_KEYS if parted and length >= PARTED_RUN else 1
        taken = parts * PART_KEYS if parts > 1 else length
        start = int(numbers[edge])
        key_sets.append(KeySet(slice(start, start + taken), parts=parts))
        in_rest[edge : edge + taken] = False
    return key_sets, torch.from_numpy(numbers[in_rest])


def _span(slots: torch.Tensor) -> slice | torch.Tensor:
    """The slice that means ``slots`` if they are consecutive, else the slots."""
    start, count = int(slots[0]), len(slots)
    if int(slots[-1]) - start == count - 1 and bool((slots[1:] - slots[:-1] == 1).all()):
        return slice(start, start + count)
    return slots


def _visible(request: RequestKeys, options: PlanOptions, first: int) -> torch.Tensor:
    """Which of the keys from ``first`` on each row sees: bool ``[rows, keys - first]``."""
    rows, keys, context = request.rows, len(request.slots), request.context
    visible = torch.ones(rows, keys - first, dtype=torch.bool)
    if options.bidirectional:
        return visible
    row_depths = request.row_depths()
    key_depths = torch.arange(first - context, keys - context)
    if request.tail is None:
        visible &= key_depths <= row_depths[:, None]
    else:
        start = context - first
        visible[:, max(start, 0) :] = request.tail.visible[:, max(-start, 0) :]
        key_depths[max(start, 0) :] = request.tail.key_depths[max(-start, 0) :]
    if options.window >= 0:
        visible &= key_depths >= row_depths[:, None] - options.window
    return visible


def _additive(visible: torch.Tensor, options: PlanOptions, folded: bool) -> torch.Tensor | None:
    """A mask for `ops.attend` out of bool ``[batch, rows, keys]``; None where all is visible."""
    if bool(visible.all()):
        return None
    mask = torch.zeros(visible.shape, dtype=options.dtype).masked_fill_(~visible, -torch.inf)
    if folded and options.group > 1:
        mask = mask.repeat_interleave(options.group, dim=1)
    return mask.unsqueeze(1)
