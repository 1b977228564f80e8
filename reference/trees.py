"""Draft trees: their shape and the arrays that describe it.

Node 0 of a tree is its root: the last token that was already emitted. Every other node is a
proposed token that continues the path from the root to its parent. A chain is a tree in which every
node has one child.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Prefix = tuple[int, ...]
NextTokenProbabilities = Callable[[Prefix], npt.ArrayLike]
"""Maps all tokens so far to the distribution of the next one, ``[vocab]``."""

_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class DraftTree:
    """Tokens proposed after a prefix.

    Parameters
    ----------
    prefix : tuple of int
        All tokens so far, prompt included; the last one is the root.
    tokens : int64 array [n]
        Token of each node; ``tokens[0] == prefix[-1]``.
    parents : int64 array [n]
        Node index of each node's parent, smaller than its own; -1 for the root. Siblings are
        verified in index order.
    proposals : float64 array [n - 1, vocab], optional
        Row ``i`` is the distribution that node ``i + 1`` was drawn from: one-hot for an argmax.
        Rejection sampling needs it, nothing else does.

    Raises
    ------
    ValueError
        Empty prefix, arrays of different lengths, a root that is not the prefix's last token,
        parents out of range, two siblings with the same token.
    """

    prefix: Prefix
    tokens: IntArray
    parents: IntArray
    proposals: FloatArray | None = None

    def __post_init__(self) -> None:
        check_prefix(self.prefix)
        _check_parents(self.parents)
        n = len(self.parents)
        require(self.tokens.shape == (n,), "tokens", self.tokens.shape, f"shape ({n},)")
        require(
            self.tokens[0] == self.prefix[-1],
            "tokens[0]",
            int(self.tokens[0]),
            f"the last token of the prefix, {self.prefix[-1]}",
        )
        edges = list(zip(self.parents.tolist(), self.tokens.tolist(), strict=True))
        require(len(set(edges)) == n, "tokens", edges, "distinct (parent, token) pairs")
        if self.proposals is not None:
            require(
                self.proposals.ndim == 2 and len(self.proposals) == n - 1,
                "proposals",
                self.proposals.shape,
                f"shape ({n - 1}, vocab)",
            )

    def path(self, node: int) -> Prefix:
        """All tokens up to and including ``node``: the prefix its children continue."""
        tail: list[int] = []
        while node > 0:
            tail.append(int(self.tokens[node]))
            node = int(self.parents[node])
        return self.prefix + tuple(reversed(tail))

    def children(self, node: int) -> list[int]:
        """Children of ``node`` in the order in which they are verified."""
        return [int(child) for child in np.flatnonzero(self.parents == node)]

    def is_chain(self) -> bool:
        """Whether every node but the last has exactly the next node as its child."""
        return bool((self.parents == np.arange(-1, len(self.parents) - 1)).all())


class RetrievalArrays(NamedTuple):
    """One request's linked-list view of a tree, each int64 ``[n]``, -1 where there is none.

    ``retrieve_index`` is the node's row in the verified batch (here of one request: its own index;
    SGLang adds ``request * n``), ``retrieve_next_token`` its first child, ``retrieve_next_sibling``
    its parent's next child.
    """

    retrieve_index: IntArray
    retrieve_next_token: IntArray
    retrieve_next_sibling: IntArray


def tree_depths(parents: npt.ArrayLike) -> IntArray:
    """Edges between each node and the root, int64 ``[n]``; ``ValueError`` for bad parents."""
    ancestors: IntArray = tree_attention_mask(parents).sum(axis=1, dtype=np.int64)
    return ancestors - 1


def tree_attention_mask(parents: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which nodes a node may attend to: itself and its ancestors.

    Parameters
    ----------
    parents : int array [n]
        As in `DraftTree`.

    Returns
    -------
    bool array [n, n]
        Rows are queries. SGLang's ``QLEN_ONLY`` mask; ``FULL_MASK`` puts the prefix's columns, all
        true, before it.

    Raises
    ------
    ValueError
        A root other than -1, or a parent that does not precede its child.
    """
    checked = _check_parents(np.asarray(parents))
    mask = np.eye(len(checked), dtype=bool)
    for node in range(1, len(checked)):
        mask[node] |= mask[checked[node]]
    return mask


def retrieval_arrays(parents: npt.ArrayLike) -> RetrievalArrays:
    """First-child and next-sibling links (SGLang ``build_tree_kernel_efficient``).

    Parameters
    ----------
    parents : int array [n]
        As in `DraftTree`.

    Raises
    ------
    ValueError
        A root other than -1, or a parent that does not precede its child.
    """
    checked = _check_parents(np.asarray(parents))
    next_token = np.full(len(checked), -1, dtype=np.int64)
    next_sibling = np.full(len(checked), -1, dtype=np.int64)
    for node in range(len(checked) - 1, 0, -1):
        next_sibling[node] = next_token[checked[node]]
        next_token[checked[node]] = node
    return RetrievalArrays(np.arange(len(checked)), next_token, next_sibling)


def parents_from_selection(
    parent_list: npt.ArrayLike, selected: npt.ArrayLike, topk: int
) -> IntArray:
    """Parents of a tree given in the arrays of SGLang's ``organize_draft_results``.

    Parameters
    ----------
    parent_list : int array [1 + topk * (num_steps - 1)]
        Entry 0 is -1; then, per step but the last, the candidate indices of the expanded beams.
    selected : int array [num_draft_tokens - 1]
        Ascending candidate indices of the kept nodes. Candidates count ``topk`` in the first step
        and ``topk * topk`` in each later one.
    topk : int
        Candidates per expanded node.

    Returns
    -------
    int64 array [num_draft_tokens]
        As in `DraftTree`.

    Raises
    ------
    ValueError
        ``topk`` below 1, or a kept node whose parent was not kept.
    """
    require(topk >= 1, "topk", topk, ">= 1")
    beams = [int(candidate) for candidate in np.asarray(parent_list)]
    kept = [int(candidate) for candidate in np.asarray(selected)]
    node_of = {candidate: node for node, candidate in enumerate(kept, start=1)}
    parents = [-1]
    for candidate in kept:
        group = candidate // topk
        if group > 0:
            require(
                group < len(beams) and beams[group] in node_of,
                "selected",
                candidate,
                "candidates whose parents are selected",
            )
        parents.append(node_of[beams[group]] if group > 0 else 0)
    return np.array(parents, dtype=np.int64)


def next_token_row(probabilities: NextTokenProbabilities, prefix: Prefix, name: str) -> FloatArray:
    """Call a next-token function and check that it returned a distribution, float64 [vocab]."""
    row = np.asarray(probabilities(prefix), dtype=np.float64)
    label = f"{name} probabilities after {prefix}"
    require(row.ndim == 1 and row.size >= 1, label, row.shape, "shape (vocab,)")
    is_distribution = (row >= 0).all() and abs(row.sum() - 1) <= _SUM_TOLERANCE
    require(bool(is_distribution), label, row.tolist(), "non-negative numbers with sum 1")
    # A lone probability rounded above 1 would let a child outrank its parent.
    return np.minimum(row, 1.0)


def sample_index(weights: FloatArray, coin: float) -> int:
    """Invert the CDF: the first index whose cumulative weight exceeds ``coin`` times the total.

    Indices of weight 0 are never returned; where rounding leaves the coin beyond the last
    cumulative weight, the last index of positive weight is.
    """
    positive = np.flatnonzero(weights > 0)
    cumulative = np.cumsum(weights)
    rank = int(np.searchsorted(cumulative[positive], coin * cumulative[-1], side="right"))
    return int(positive[min(rank, len(positive) - 1)])


def check_coins(name: str, coins: npt.ArrayLike, count: int) -> FloatArray:
    """``count`` uniform numbers in [0, 1), or ``ValueError``."""
    array = np.asarray(coins, dtype=np.float64)
    require(array.shape == (count,), name, array.shape, f"shape ({count},)")
    outside = array[~((array >= 0) & (array < 1))]
    require(outside.size == 0, name, outside.tolist(), "[0, 1)")
    return array


def require(holds: bool | np.bool_, name: str, value: Any, allowed: str) -> None:
    """Raise ``ValueError`` naming the argument, its value and the allowed range."""
    if not holds:
        raise ValueError(f"{name} = {value!r} is not allowed: expected {allowed}")


def check_prefix(prefix: Prefix) -> Prefix:
    """Return a prefix that has a root, or raise ``ValueError``."""
    require(len(prefix) >= 1, "prefix", prefix, "at least one token")
    return prefix


def _check_parents(parents: npt.NDArray[Any]) -> IntArray:
    require(parents.ndim == 1 and parents.size >= 1, "parents", parents.shape, "shape (n,), n >= 1")
    require(np.issubdtype(parents.dtype, np.integer), "parents", parents.dtype, "integers")
    require(parents[0] == -1, "parents[0]", int(parents[0]), "-1, the root")
    bad = [int(p) for node, p in enumerate(parents[1:], start=1) if not 0 <= p < node]
    require(not bad, "parents", bad, "each in [0, its own index)")
    return parents.astype(np.int64)
