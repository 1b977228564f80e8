"""Verification of draft trees on hand-computed cases; test_decoding proves the distributions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from reference.decoding import (
    DraftTree,
    draft_chain,
    verify_by_rejection,
    verify_by_sampling,
    verify_greedily,
)

Tokens = tuple[int, ...]


def tree_of(prefix: Tokens, tokens: list[int], parents: list[int]) -> DraftTree:
    return DraftTree(prefix, np.array([prefix[-1], *tokens]), np.array([-1, *parents]))


def next_is_successor(prefix: Tokens) -> np.ndarray:
    return np.eye(6)[(prefix[-1] + 1) % 6]


def test_greedy_verification_takes_the_matching_branch() -> None:
    # 0 -> {4, 1}, 1 -> {2, 5}: the target counts up.
    tree = tree_of((0,), [4, 1, 5, 2], [0, 0, 2, 2])
    verified = verify_greedily(tree, next_is_successor)
    assert verified.tokens == (1, 2, 3)
    assert verified.nodes == (0, 2, 4)
    assert verified.accept_length == 3


def test_greedy_verification_of_a_wrong_tree_still_emits_one_token() -> None:
    verified = verify_greedily(tree_of((0,), [4, 5], [0, 0]), next_is_successor)
    assert (verified.tokens, verified.nodes, verified.accept_length) == ((1,), (0,), 1)


def fixed(*row: float) -> Callable[[Tokens], np.ndarray]:
    return lambda prefix: np.array(row)


@pytest.mark.parametrize(
    ("coin", "final", "tokens", "nodes"),
    [
        (0.0, 0.0, (2, 0), (0, 1)),  # within the first child's 0.5
        (0.49, 0.2, (2, 1), (0, 1)),  # the leaf's coin is the final one: 0.2 >= p[0] = 0.125
        (0.5, 0.0, (0, 0), (0, 2)),  # 0.5 is not below 0.5; 0.625 is the sum with child 2
        (0.62, 0.99, (0, 3), (0, 2)),
        (0.625, 0.0, (1,), (0,)),  # the rest: tokens 1 (0.125) and 3 (0.25)
        (0.9, 0.33, (1,), (0,)),
        (0.9, 0.34, (3,), (0,)),
    ],
)
def test_siblings_share_one_coin_against_their_cumulated_mass(
    coin: float, final: float, tokens: Tokens, nodes: Tokens
) -> None:
    tree = tree_of((0,), [2, 0], [0, 0])
    verified = verify_by_sampling(
        tree, fixed(0.125, 0.125, 0.5, 0.25), coins=[coin, 0.9, 0.9], final_coin=final
    )
    assert (verified.tokens, verified.nodes) == (tokens, nodes)


def test_an_accepted_node_brings_its_own_coin() -> None:
    tree = tree_of((0,), [1, 1], [0, 1])
    target = fixed(0.5, 0.5)
    first = verify_by_sampling(tree, target, coins=[0.4, 0.6, 0.0], final_coin=0.0)
    second = verify_by_sampling(tree, target, coins=[0.4, 0.4, 0.0], final_coin=0.0)
    assert first.tokens == (1, 0)
    assert second.tokens == (1, 1, 0)


def test_a_child_without_target_mass_is_never_accepted() -> None:
    tree = tree_of((0,), [0], [0])
    verified = verify_by_sampling(
        tree, fixed(0.0, 1.0), coins=[0.0, 0.0], final_coin=0.0, threshold_single=0.0
    )
    assert verified.tokens == (1,)


def test_thresholds_below_one_accept_more_than_the_target_would() -> None:
    tree = tree_of((0,), [0], [0])
    target = fixed(0.25, 0.75)

    def accepted(**thresholds: float) -> bool:
        verified = verify_by_sampling(tree, target, coins=[0.4, 0.0], final_coin=0.9, **thresholds)
        return verified.accept_length == 2

    assert not accepted()
    assert accepted(threshold_single=0.25)
    assert not accepted(threshold_single=0.26)
    assert accepted(threshold_acc=0.5)
    assert accepted(threshold_acc=0.0)


def test_mass_lost_to_rounding_still_ends_in_a_token_the_target_allows() -> None:
    # The children hold all of a mass that sums to just below 1, and the coin lies above it.
    tree = tree_of((0,), [1, 2], [0, 0])
    target = fixed(0.0, 0.5, 0.5 - 1e-9, 0.0)
    verified = verify_by_sampling(tree, target, coins=[1 - 1e-12, 0.0, 0.0], final_coin=0.9)
    assert verified.tokens == (2,)


@pytest.mark.parametrize(
    ("coin", "final", "tokens"),
    [(0.49, 0.0, (0, 0)), (0.5, 0.0, (1,)), (0.5, 0.99, (1,)), (0.0, 0.3, (0, 1))],
)
def test_a_drafted_token_is_accepted_with_probability_p_over_q(
    coin: float, final: float, tokens: Tokens
) -> None:
    # q = (0.5, 0.5), p = (0.25, 0.75): token 0 passes half of the time, the residual is token 1.
    chain = DraftTree((0,), np.array([0, 0]), np.array([-1, 0]), np.array([[0.5, 0.5]]))
    verified = verify_by_rejection(chain, fixed(0.25, 0.75), coins=[coin, 0.0], final_coin=final)
    assert verified.tokens == tokens


def good_chain() -> DraftTree:
    return draft_chain((0,), fixed(0.5, 0.5), 1)


def sample(**changes: object) -> object:
    arguments = {"coins": [0.0, 0.0], "final_coin": 0.0} | changes
    return verify_by_sampling(good_chain(), fixed(0.5, 0.5), **arguments)


def reject(chain: DraftTree, row: tuple[float, ...] = (0.5, 0.5), **changes: object) -> object:
    arguments = {"coins": [0.0] * len(chain.tokens), "final_coin": 0.0} | changes
    return verify_by_rejection(chain, fixed(*row), **arguments)


UNPROPOSED = DraftTree((0,), np.array([0, 1]), np.array([-1, 0]), np.array([[1.0, 0.0]]))
ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "coin of 1": (lambda: sample(coins=[0.0, 1.0]), r"coins = \[1\.0\].*\[0, 1\)"),
    "coin negative": (lambda: sample(coins=[-0.1, 0.0]), r"coins = \[-0\.1\]"),
    "coin nan": (lambda: sample(coins=[np.nan, 0.0]), r"coins = \[nan\]"),
    "coins too few": (lambda: sample(coins=[0.0]), r"coins = \(1,\).*\(2,\)"),
    "final coin": (lambda: sample(final_coin=2.0), r"final_coin = \[2\.0\]"),
    "threshold single": (lambda: sample(threshold_single=1.5), "threshold_single = 1.5"),
    "threshold acc": (lambda: sample(threshold_acc=-1.0), r"threshold_acc = -1\.0"),
    "token outside the vocabulary": (
        lambda: verify_by_sampling(
            tree_of((0,), [7], [0]), fixed(0.5, 0.5), coins=[0.0, 0.0], final_coin=0.0
        ),
        r"tree\.tokens = 7.*\[0, 2\)",
    ),
    "target does not sum to 1": (
        lambda: verify_greedily(good_chain(), fixed(0.5, 0.4)),
        r"target probabilities after \(0,\) = \[0\.5, 0\.4\].*sum 1",
    ),
    "target negative": (lambda: verify_greedily(good_chain(), fixed(1.5, -0.5)), "non-negative"),
    "target nan": (lambda: verify_greedily(good_chain(), fixed(np.nan, 1.0)), "non-negative"),
    "target a matrix": (
        lambda: verify_greedily(good_chain(), lambda prefix: [[1.0]]),
        r"target probabilities.*\(vocab,\)",
    ),
    "rejection of a tree": (lambda: reject(tree_of((0,), [0, 1], [0, 0])), r"chain = \[-1, 0, 0\]"),
    "rejection without proposals": (
        lambda: reject(tree_of((0,), [0], [0])),
        r"chain\.proposals = None",
    ),
    "rejection of an impossible draft": (
        lambda: reject(UNPROPOSED),
        r"chain\.proposals = 0\.0.*\(0, 1\]",
    ),
    "rejection across vocabularies": (
        lambda: reject(good_chain(), (0.5, 0.25, 0.25)),
        r"chain\.proposals = \(1, 2\).*3",
    ),
    "rejection coins": (lambda: reject(good_chain(), coins=[0.0]), r"coins = \(1,\)"),
    "rejection final coin": (
        lambda: reject(good_chain(), final_coin=1.0),
        r"final_coin = \[1\.0\]",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_user_error_names_the_argument_its_value_and_the_range(name: str) -> None:
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()
