"""Verification of a draft tree by the target.

Randomness enters as explicit coins, uniform in [0, 1), so that another implementation can be
compared coin for coin. The coin of a node decides which of its CHILDREN is accepted; one more coin
draws the final token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reference.trees import (
    DraftTree,
    FloatArray,
    NextTokenProbabilities,
    Prefix,
    check_coins,
    next_token_row,
    require,
    sample_index,
)

# SGLang's kernel keeps the divisor of the accumulated mass above this.
_SMALLEST_THRESHOLD = 1e-9


@dataclass(frozen=True)
class Verified:
    """What one round emits.

    Attributes
    ----------
    tokens : tuple of int
        Accepted draft tokens and the final token.
    nodes : tuple of int
        The accepted path, root first: the target's KV rows that stay.
    """

    tokens: Prefix
    nodes: tuple[int, ...]

    @property
    def accept_length(self) -> int:
        """Tokens emitted in the round, bonus INCLUDED: SGLang's meaning."""
        return len(self.tokens)


def verify_greedily(tree: DraftTree, target: NextTokenProbabilities) -> Verified:
    """Follow the target's argmax through the tree (SGLang ``verify_tree_greedy``).

    Parameters
    ----------
    tree : DraftTree
        The proposal.
    target : callable
        The target's next-token distribution; ties go to the lower token.

    Returns
    -------
    Verified

    Raises
    ------
    ValueError
        A target distribution that is none.
    """
    nodes = [0]
    tokens: list[int] = []
    while True:
        tokens.append(int(np.argmax(next_token_row(target, tree.path(nodes[-1]), "target"))))
        matches = [child for child in tree.children(nodes[-1]) if tree.tokens[child] == tokens[-1]]
        if not matches:
            return Verified(tuple(tokens), tuple(nodes))
        nodes.append(matches[0])


def verify_by_sampling(
    tree: DraftTree,
    target: NextTokenProbabilities,
    *,
    coins: npt.ArrayLike,
    final_coin: float,
    threshold_single: float = 1.0,
    threshold_acc: float = 1.0,
) -> Verified:
    """Sample a path by the target's probabilities alone.

    At each accepted node its children are walked in order while their target probabilities add up;
    the first whose running sum exceeds the node's coin is accepted. Where none is, the final token
    is drawn from the target's mass on tokens that no child proposed. Both together invert one CDF
    of the target's distribution with the children sorted to the front, so with both thresholds at
    1 any tree drafted independently of these coins leaves the target's distribution unchanged.

    Parameters
    ----------
    tree : DraftTree
        The proposal; its ``proposals`` are not used.
    target : callable
        The target's next-token distribution.
    coins : float array [n]
        Uniform in [0, 1), one per node.
    final_coin : float
        Uniform in [0, 1).
    threshold_single, threshold_acc : float
        In [0, 1]; ``--speculative-accept-threshold-single`` and ``-acc``. Below 1 children are
        accepted more often than the target would, and the output is no longer the target's.

    Returns
    -------
    Verified

    Raises
    ------
    ValueError
        Coins of the wrong shape or outside [0, 1), a threshold outside [0, 1], a child's token
        outside the vocabulary, a target distribution that is none.

    Notes
    -----
    Source: SGLang ``tree_speculative_sampling_target_only`` with zero draft probabilities. The one
    difference: where rounding rejects children that hold all of the mass, SGLang's kernel emits
    the last token of the vocabulary, this the draw from the target's whole distribution.
    """
    node_coins = check_coins("coins", coins, len(tree.tokens))
    last_coin = float(check_coins("final_coin", [final_coin], 1)[0])
    require(0 <= threshold_single <= 1, "threshold_single", threshold_single, "[0, 1]")
    require(0 <= threshold_acc <= 1, "threshold_acc", threshold_acc, "[0, 1]")
    divisor = max(threshold_acc, _SMALLEST_THRESHOLD)
    nodes = [0]
    while True:
        node = nodes[-1]
        row = next_token_row(target, tree.path(node), "target")
        residual = row.copy()
        mass = 0.0
        for child in tree.children(node):
            token = _token_in(row, tree, child)
            mass += row[token]
            if row[token] > 0 and (
                node_coins[node] < mass / divisor or row[token] >= threshold_single
            ):
                nodes.append(child)
                break
            residual[token] = 0.0
        else:
            return _finish(tree, nodes, residual, row, last_coin)


def verify_by_rejection(
    chain: DraftTree,
    target: NextTokenProbabilities,
    *,
    coins: npt.ArrayLike,
    final_coin: float,
) -> Verified:
    """Classical rejection sampling: accept a drafted token with probability ``min(1, p / q)``.

    On the first rejection the final token is drawn from ``max(p - q, 0)``, after the last
    acceptance from ``p``. The target's distribution is preserved when every token was drawn from
    its own row of ``chain.proposals``, independently of these coins.

    Parameters
    ----------
    chain : DraftTree
        A chain with proposals, from `draft_chain`.
    target : callable
        The target's next-token distribution, over the draft's vocabulary.
    coins : float array [n]
        Uniform in [0, 1), one per node; the last node's is not used.
    final_coin : float
        Uniform in [0, 1).

    Returns
    -------
    Verified

    Raises
    ------
    ValueError
        A tree that is no chain or has no proposals, a proposal that gives its own token no
        probability, vocabularies of different size, coins of the wrong shape or outside [0, 1), a
        target distribution that is none.

    Notes
    -----
    Sources: Leviathan et al. 2023, algorithm 1; SGLang ``chain_speculative_sampling_triton``.
    """
    node_coins = check_coins("coins", coins, len(chain.tokens))
    last_coin = float(check_coins("final_coin", [final_coin], 1)[0])
    require(chain.is_chain(), "chain", chain.parents.tolist(), "one child per node")
    proposals = chain.proposals
    if proposals is None:
        raise ValueError("chain.proposals = None is not allowed: expected an array [n - 1, vocab]")
    nodes = [0]
    while True:
        node = nodes[-1]
        row = next_token_row(target, chain.path(node), "target")
        if node == len(proposals):
            return _finish(chain, nodes, row, row, last_coin)
        proposal = proposals[node]
        require(
            proposal.shape == row.shape, "chain.proposals", proposals.shape, f"(n - 1, {len(row)})"
        )
        token = _token_in(row, chain, node + 1)
        require(
            proposal[token] > 0, "chain.proposals", float(proposal[token]), "(0, 1] at its token"
        )
        if node_coins[node] * proposal[token] < row[token]:
            nodes.append(node + 1)
        else:
            return _finish(chain, nodes, np.maximum(row - proposal, 0.0), row, last_coin)


def _finish(
    tree: DraftTree, nodes: list[int], residual: FloatArray, row: FloatArray, coin: float
) -> Verified:
    # Rounding alone can reject a draft that leaves no residual mass.
    final = sample_index(residual if residual.any() else row, coin)
    accepted = (int(tree.tokens[node]) for node in nodes[1:])
    return Verified((*accepted, final), tuple(nodes))


def _token_in(row: FloatArray, tree: DraftTree, node: int) -> int:
    token = int(tree.tokens[node])
    require(0 <= token < len(row), "tree.tokens", token, f"[0, {len(row)}), the target's vocab")
    return token
