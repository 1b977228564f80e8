"""Penalties at every node of a draft tree; torch twin of `reference.penalties`.

SGLang's speculative decoding adds one penalty vector to all nodes of a round. Here a node is judged
by what plain decoding would have emitted there: the row's output before the round, and the drafted
tokens from the root's children down to the node. The first is the same for all nodes of a request
and applied to whole rows; the second is a handful of tokens, whose logits are computed from the
unpenalised ones and written over. Nothing here waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_ELEMENTS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits that are scaled together: a CPU's caches, a GPU's memory (0.8 GB in between)."""


@dataclass(frozen=True)
class BatchPenalties:
    """Per request of a batch, all on the device.

    Attributes
    ----------
    frequency, presence, repetition
        float32 ``[batch, 1]``; 0, 0 and 1 change nothing.
    counts
        How often each token was emitted, the tree's root included: int32 ``[batch, vocabulary]``;
        None where no request has one of the three.
    emitted
        Tokens emitted so far, the root included: int32 ``[batch, 1]``.
    min_new_tokens
        int32 ``[batch, 1]``.
    stop_tokens
        Tokens that may not come earlier: int64 ``[batch, S]``, each row filled up with its own;
        None where no request has a minimum.
    """

    frequency: torch.Tensor
    presence: torch.Tensor
    repetition: torch.Tensor
    counts: torch.Tensor | None
    emitted: torch.Tensor
    min_new_tokens: torch.Tensor
    stop_tokens: torch.Tensor | None


@dataclass(frozen=True)
class Paths:
    """For each node of each tree, the drafted tokens that lead to it.

    Attributes
    ----------
    tokens
        int64 ``[batch, nodes, steps]``, the node's own first; the root's token where a path is
        shorter.
    drafted
        Which of them are drafted tokens, bool of the same shape.
    """

    tokens: torch.Tensor
    drafted: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        """Drafted tokens up to each node, int64 ``[batch, nodes]``."""
        return self.drafted.sum(-1)


def parents_of(first_child: torch.Tensor, next_sibling: torch.Tensor, *, topk: int) -> torch.Tensor:
    """Return each node's parent from SGLang's links, int64 ``[batch, nodes]``; the root's is 0.

    Parameters
    ----------
    first_child, next_sibling
        ``retrieve_next_token`` and ``retrieve_next_sibling``, int64 ``[batch, nodes]``; -1: none.
    topk
        No node has more children.
    """
    batch, nodes = first_child.shape
    # The last column takes what belongs nowhere.
    parents = first_child.new_zeros((batch, nodes + 1))
    numbers = torch.arange(nodes, device=first_child.device).expand(batch, nodes)
    parents.scatter_(1, torch.where(first_child < 0, nodes, first_child), numbers)
    siblings = torch.where(next_sibling < 0, nodes, next_sibling)
    for _ in range(topk - 1):
        parents.scatter_(1, siblings, parents[:, :nodes].clone())
    return parents[:, :nodes]


def paths_of(tokens: torch.Tensor, parents: torch.Tensor, *, steps: int) -> Paths:
    """Return the drafted tokens that lead to each node.

    Parameters
    ----------
    tokens
        Token of each node, int64 ``[batch, nodes]``.
    parents
        From `parents_of`.
    steps
        Depth of the deepest node; 0 where nothing was drafted and there are roots alone.
    """
    node = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    on_path = tokens.new_empty((*tokens.shape, steps))
    drafted = torch.empty_like(on_path, dtype=torch.bool)
    for step in range(steps):
        on_path[..., step] = tokens.gather(1, node)
        drafted[..., step] = node > 0
        node = parents.gather(1, node)
    return Paths(on_path, drafted)


def penalise_nodes(logits: torch.Tensor, paths: Paths, penalties: BatchPenalties) -> None:
    """Change ``logits``, ``[batch * nodes, vocabulary]``, in place.

    Notes
    -----
    Source of the order: SGLang ``SamplingBatchInfo.copy_for_forward``, which adds first and scales
    then. Rounding is SGLang's too where logits are not float32: each of the two is written back.
    """
    batch, nodes, _ = paths.tokens.shape
    rows = logits.view(batch, nodes, -1)
    if penalties.counts is not None:
        on_path = rows.gather(2, paths.tokens)
        counts = _counts_at(paths, penalties.counts)
        _penalise_rows(rows, penalties.counts, penalties)
        _penalise(on_path, counts, penalties)
        # A token that stands twice on a path has the same value in both places.
        rows.scatter_(2, paths.tokens, on_path)
    if penalties.stop_tokens is not None:
        _withhold(rows, paths, penalties.stop_tokens, penalties)


def penalty_terms(
    counts: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    repetition: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is subtracted from logits and what scales them, for tokens emitted so often.

    Parameters
    ----------
    counts
        int ``[batch, ...]``.
    frequency, presence, repetition
        float32 ``[batch, 1]``.

    Returns
    -------
    tuple
        float32 tensors of the shape of ``counts``.
    """
    shape = (-1,) + (1,) * (counts.dim() - 1)
    occurred = counts > 0
    subtracted = frequency.view(shape) * counts + presence.view(shape) * occurred
    return subtracted, torch.where(occurred, repetition.view(shape), 1.0)


def _counts_at(paths: Paths, counts: torch.Tensor) -> torch.Tensor:
    """How often each token of a path was emitted when its node is judged, as ``paths.tokens``."""
    before = counts.gather(1, paths.tokens.flatten(1)).view_as(paths.tokens)
    same = paths.tokens.unsqueeze(-1) == paths.tokens.unsqueeze(-2)
    return before + (same & paths.drafted.unsqueeze(-2)).sum(-1)


def _penalise_rows(rows: torch.Tensor, counts: torch.Tensor, penalties: BatchPenalties) -> None:
    """Penalise whole rows, so many requests at a time that what is in between stays small."""
    limit = _ELEMENTS_AT_ONCE.get(rows.device.type, _ELEMENTS_AT_ONCE["cuda"])
    at_once = max(1, limit // rows[0].numel())
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        _penalise(rows[part], counts[part].unsqueeze(1), penalties, part)


def _penalise(
    logits: torch.Tensor,
    counts: torch.Tensor,
    penalties: BatchPenalties,
    part: slice = slice(None),
) -> None:
    subtracted, scale = penalty_terms(
        counts, penalties.frequency[part], penalties.presence[part], penalties.repetition[part]
    )
    logits.sub_(subtracted)
    logits.copy_(torch.where(logits < 0, logits * scale, logits / scale))


def _withhold(
    rows: torch.Tensor, paths: Paths, stop_tokens: torch.Tensor, penalties: BatchPenalties
) -> None:
    """No stop token before the minimum is reached."""
    batch, nodes, _ = rows.shape
    index = stop_tokens.unsqueeze(1).expand(batch, nodes, stop_tokens.shape[1])
    too_early = penalties.emitted + paths.lengths < penalties.min_new_tokens
    kept = rows.gather(2, index).masked_fill(too_early.unsqueeze(-1), -torch.inf)
    rows.scatter_(2, index, kept)
