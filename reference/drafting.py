"""How a draft model grows a chain or a tree of proposals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from reference.trees import (
    DraftTree,
    FloatArray,
    IntArray,
    NextTokenProbabilities,
    Prefix,
    check_coins,
    check_prefix,
    next_token_row,
    parents_from_selection,
    require,
    sample_index,
)


def draft_chain(
    prefix: Sequence[int],
    probabilities: NextTokenProbabilities,
    num_steps: int,
    *,
    coins: npt.ArrayLike | None = None,
) -> DraftTree:
    """Draft ``num_steps`` tokens in a row.

    Parameters
    ----------
    prefix : sequence of int
        All tokens so far, at least one.
    probabilities : callable
        The draft's next-token distribution.
    num_steps : int
        Tokens to draft, >= 1.
    coins : float array [num_steps], optional
        Uniform in [0, 1): draw each token by them. Without coins each token is the argmax, and the
        proposal it is verified with is one-hot: that is what it was drawn from.

    Returns
    -------
    DraftTree
        ``num_steps + 1`` nodes, proposals included.

    Raises
    ------
    ValueError
        Empty prefix, ``num_steps`` below 1, coins of the wrong shape or outside [0, 1), or a draft
        distribution that is none.
    """
    root = check_prefix(tuple(prefix))
    require(num_steps >= 1, "num_steps", num_steps, ">= 1")
    draws = None if coins is None else check_coins("coins", coins, num_steps)
    path = root
    proposals = []
    for step in range(num_steps):
        row = next_token_row(probabilities, path, "draft")
        if draws is None:
            token = int(np.argmax(row))
            row = np.eye(1, len(row), token)[0]
        else:
            token = sample_index(row, float(draws[step]))
        proposals.append(row)
        path = (*path, token)
    tokens = np.array(path[len(root) - 1 :], dtype=np.int64)
    return DraftTree(root, tokens, np.arange(-1, num_steps), np.stack(proposals))


def draft_tree(
    prefix: Sequence[int], probabilities: NextTokenProbabilities, widths: Sequence[int]
) -> DraftTree:
    """Draft a tree whose depth ``d`` (from 1) has ``widths[d - 1]`` nodes.

    Each depth keeps the best continuations of the one above by the product of draft probabilities
    along the path; ties go to the earlier parent, then to the lower token.

    Parameters
    ----------
    prefix : sequence of int
        All tokens so far, at least one.
    probabilities : callable
        The draft's next-token distribution.
    widths : sequence of int
        Nodes per depth; each in [1, nodes of the depth above * vocab]. The paper's static tree has
        4, 8, 8, 3 and 2.

    Returns
    -------
    DraftTree
        ``1 + sum(widths)`` nodes in breadth-first order, no proposals.

    Raises
    ------
    ValueError
        Empty prefix, no widths or one out of range, or a draft distribution that is none.
    """
    root = check_prefix(tuple(prefix))
    require(len(widths) >= 1, "widths", list(widths), "at least one depth")
    paths, tokens, parents = [root], [root[-1]], [-1]
    level, scores = [0], np.ones(1)
    for width in widths:
        rows = np.stack([next_token_row(probabilities, paths[node], "draft") for node in level])
        candidates = (scores[:, None] * rows).ravel()
        require(1 <= width <= candidates.size, "widths", width, f"[1, {candidates.size}]")
        best = _best(candidates, width)
        owners = [level[int(flat) // rows.shape[1]] for flat in best]
        level = list(range(len(tokens), len(tokens) + width))
        scores = candidates[best]
        for owner, flat in zip(owners, best, strict=True):
            token = int(flat) % rows.shape[1]
            tokens.append(token)
            parents.append(owner)
            paths.append((*paths[owner], token))
    return DraftTree(root, np.array(tokens, dtype=np.int64), np.array(parents, dtype=np.int64))


def draft_dynamic_tree(
    prefix: Sequence[int],
    probabilities: NextTokenProbabilities,
    *,
    topk: int,
    num_steps: int,
    num_draft_tokens: int,
) -> DraftTree:
    """Draft the tree that SGLang drafts (``select_top_k_tokens``, ``organize_draft_results``).

    A beam of ``topk`` nodes grows for ``num_steps`` steps. In each step every beam node proposes
    its ``topk`` best tokens, and the ``topk`` best of all those by cumulative probability are the
    next beam. Of all candidates ever proposed the ``num_draft_tokens - 1`` best are kept, in the
    order in which they were proposed. Ties go to the candidate proposed first, so that a kept
    node's parent is always kept.

    Parameters
    ----------
    prefix : sequence of int
        All tokens so far, at least one.
    probabilities : callable
        The draft's next-token distribution.
    topk, num_steps, num_draft_tokens : int
        ``--speculative-eagle-topk``, ``-num-steps`` and ``-num-draft-tokens``. ``num_draft_tokens``
        counts the root.

    Returns
    -------
    DraftTree
        ``num_draft_tokens`` nodes, no proposals.

    Raises
    ------
    ValueError
        Empty prefix, ``topk`` outside [1, vocab], ``num_steps`` below 1, ``num_draft_tokens``
        outside [2, 1 + candidates], or a draft distribution that is none.
    """
    root = check_prefix(tuple(prefix))
    require(num_steps >= 1, "num_steps", num_steps, ">= 1")
    require(topk >= 1, "topk", topk, ">= 1")
    limit = 1 + topk + (num_steps - 1) * topk * topk
    require(2 <= num_draft_tokens <= limit, "num_draft_tokens", num_draft_tokens, f"[2, {limit}]")
    beams: list[Prefix] = [root]
    scores = np.ones(1)
    parent_list = [-1]
    all_scores: list[float] = []
    all_tokens: list[int] = []
    for step in range(num_steps):
        rows = np.stack([next_token_row(probabilities, beam, "draft") for beam in beams])
        require(topk <= rows.shape[1], "topk", topk, f"[1, {rows.shape[1]}]")
        ranked = np.stack([_best(row, topk) for row in rows])
        candidates = (scores[:, None] * np.take_along_axis(rows, ranked, axis=1)).ravel()
        tokens = [int(token) for token in ranked.ravel()]
        chosen = [int(flat) for flat in _best(candidates, topk)]
        if step < num_steps - 1:
            parent_list += [len(all_scores) + flat for flat in chosen]
        all_scores += candidates.tolist()
        all_tokens += tokens
        beams = [(*beams[flat // topk], tokens[flat]) for flat in chosen]
        scores = candidates[chosen]
    selected = np.sort(_best(np.array(all_scores), num_draft_tokens - 1))
    return DraftTree(
        root,
        np.array([root[-1], *(all_tokens[int(flat)] for flat in selected)], dtype=np.int64),
        parents_from_selection(parent_list, selected, topk),
    )


def _best(values: FloatArray, count: int) -> IntArray:
    return np.argsort(-values, kind="stable")[:count].astype(np.int64)
