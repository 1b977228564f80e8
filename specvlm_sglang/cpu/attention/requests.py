"""What each request of a batch attends to: its KV slots, and which row sees which key.

Lengths come from ``forward_batch.seq_lens`` and slots from the runner's own ``req_to_token`` rows.
``positions`` are never read: a draft on a pruned prompt keeps rows shorter than its positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class DraftStep:
    """Place of one draft decode forward in the drafting of a round.

    Attributes
    ----------
    index
        0 for the first forward; it sees ``index + 1`` tokens of its branch.
    topk
        Branches per request: query rows per request.
    num_steps
        ``--speculative-num-steps``: slots per branch.
    page_size
        Tokens per KV page. With several branches and pages, a branch starts on a page of its own.
    """

    index: int
    topk: int
    num_steps: int
    page_size: int

    def branch_columns(self, seq_len: int) -> list[int]:
        """Table columns of the tokens that the branches hold so far, branch by branch.

        The layout of ``generate_draft_decode_kv_indices`` (SGLang's
        ``kernels/ops/speculative/cache_locs.py``), for ``seq_len`` committed tokens.
        """
        if self.page_size == 1 or self.topk == 1:
            first, stride = seq_len, self.num_steps
        else:
            partial = seq_len % self.page_size
            pages = -(-(partial + self.num_steps) // self.page_size)
            first, stride = seq_len, pages * self.page_size
        return [
            first + branch * stride + token
            for branch in range(self.topk)
            for token in range(self.index + 1)
        ]


@dataclass(frozen=True)
class Tail:
    """Keys at the end of a request's slots that not every row sees.

    Attributes
    ----------
    visible
        bool ``[rows, tail keys]``.
    row_depths, key_depths
        int64 ``[rows]`` and ``[tail keys]``: positions relative to the first token after the
        context, for sliding windows.
    """

    visible: torch.Tensor
    row_depths: torch.Tensor
    key_depths: torch.Tensor


@dataclass(frozen=True)
class RequestKeys:
    """One request's query rows and keys.

    Attributes
    ----------
    slots
        int32 or int64 ``[keys]``: KV pool slots in position order.
    first_row, rows
        Its rows in the batch's flat queries.
    context
        Leading keys before every row; windows aside, all rows see them.
    tail
        Visibility of the keys after the context; None: one key a row, causal.
    """

    slots: torch.Tensor
    first_row: int
    rows: int
    context: int
    tail: Tail | None = None

    def row_depths(self) -> torch.Tensor:
        """int64 ``[rows]``: positions of the rows after the context."""
        return torch.arange(self.rows) if self.tail is None else self.tail.row_depths

    def block(self, start: int, stop: int) -> RequestKeys:
        """Rows ``start:stop`` of a causal request, without the keys that none of them sees."""
        keys = self.context + stop
        return RequestKeys(
            self.slots[:keys], self.first_row + start, stop - start, self.context + start
        )


def of_batch(
    forward_batch: Any, req_to_token: torch.Tensor, draft_step: DraftStep | None
) -> list[RequestKeys]:
    """Describe every request of a batch that is not idle.

    Parameters
    ----------
    forward_batch
        SGLang's ``ForwardBatch``. Modes: decode; target verify (``spec_info`` holds the tree);
        everything else is an extension by ``extend_seq_lens``.
    req_to_token
        The runner's table ``[requests, context]``, int32.
    draft_step
        Set for a draft's multi-step decode, whose ``seq_lens`` are the committed ones.
    """
    table_rows = forward_batch.req_pool_indices.tolist()
    seq_lens = forward_batch.seq_lens.tolist()
    mode = forward_batch.forward_mode
    if mode.is_decode():
        if draft_step is None:
            return [
                RequestKeys(req_to_token[table_row, :length], i, 1, length - 1)
                for i, (table_row, length) in enumerate(zip(table_rows, seq_lens, strict=True))
            ]
        return _draft_decode(table_rows, seq_lens, req_to_token, draft_step)
    if mode.is_target_verify():
        spec_info = forward_batch.spec_info
        if spec_info is None:
            raise ValueError("a target-verify batch carries no spec_info to verify")
        return _verify(table_rows, seq_lens, req_to_token, spec_info)
    return _extend(table_rows, seq_lens, req_to_token, forward_batch.extend_seq_lens.tolist())


def _extend(
    table_rows: list[int], seq_lens: list[int], req_to_token: torch.Tensor, new_lens: list[int]
) -> list[RequestKeys]:
    requests: list[RequestKeys] = []
    first_row = 0
    for table_row, length, new in zip(table_rows, seq_lens, new_lens, strict=True):
        if new:
            slots = req_to_token[table_row, :length]
            requests.append(RequestKeys(slots, first_row, new, length - new))
        first_row += new
    return requests


def _draft_decode(
    table_rows: list[int], seq_lens: list[int], req_to_token: torch.Tensor, step: DraftStep
) -> list[RequestKeys]:
    if step.topk == 1:
        return [
            RequestKeys(
                req_to_token[table_row, : length + step.index + 1], i, 1, length + step.index
            )
            for i, (table_row, length) in enumerate(zip(table_rows, seq_lens, strict=True))
        ]
    held = step.index + 1
    tail = Tail(
        visible=torch.eye(step.topk, dtype=torch.bool).repeat_interleave(held, dim=1),
        row_depths=torch.full((step.topk,), step.index),
        key_depths=torch.arange(held).repeat(step.topk),
    )
    requests = []
    for i, (table_row, length) in enumerate(zip(table_rows, seq_lens, strict=True)):
        row = req_to_token[table_row]
        slots = torch.cat([row[:length], row[step.branch_columns(length)]])
        requests.append(RequestKeys(slots, i * step.topk, step.topk, length, tail))
    return requests


def _verify(
    table_rows: list[int], seq_lens: list[int], req_to_token: torch.Tensor, spec_info: Any
) -> list[RequestKeys]:
    rows = spec_info.draft_token_num
    mask = spec_info.custom_mask
    # A chain's tree is causal; its mask says nothing new, and some workers leave it out.
    is_chain = mask is None or mask.numel() == 0 or getattr(spec_info, "tree_topk", -1) == 1
    trees = None if is_chain else _tree_blocks(mask, seq_lens, rows)
    requests = []
    for i, (table_row, length) in enumerate(zip(table_rows, seq_lens, strict=True)):
        tail = None
        if trees is not None:
            depths = trees[i].sum(dim=1) - 1
            tail = Tail(visible=trees[i], row_depths=depths, key_depths=depths)
        slots = req_to_token[table_row, : length + rows]
        requests.append(RequestKeys(slots, i * rows, rows, length, tail))
    return requests


def _tree_blocks(mask: torch.Tensor, seq_lens: list[int], rows: int) -> list[torch.Tensor]:
    """Ancestor matrices ``[rows, rows]`` out of SGLang's flat tree mask (``TreeMaskMode``).

    ``FULL_MASK`` has ``seq_len + rows`` columns a request, the committed ones all true;
    ``QLEN_ONLY`` has the ``rows`` tree columns alone. A buffer may be longer than the batch.
    """
    bs = len(seq_lens)
    full = rows * (sum(seq_lens) + rows * bs)
    if mask.numel() < full:
        if mask.numel() != rows * rows * bs:
            raise ValueError(
                f"custom_mask has {mask.numel()} entries; {bs} requests with {rows} draft tokens "
                f"need {full} (full) or {rows * rows * bs} (tree part only)"
            )
        return list(mask.bool().view(bs, rows, rows))
    blocks = []
    start = 0
    for length in seq_lens:
        stop = start + rows * (length + rows)
        blocks.append(mask[start:stop].view(rows, length + rows)[:, length:].bool())
        start = stop
    return blocks
