"""Speculative decoding on small tables: exact, not only by Monte Carlo.

All probabilities here are multiples of 1/4, so that every coin acts through thresholds that are
quotients of integers up to 4. One coin from each interval between neighbouring quotients then
stands for the whole interval, and summing over all choices gives exact output distributions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.decoding import (
    DraftTree,
    decode_plainly,
    draft_chain,
    draft_dynamic_tree,
    draft_tree,
    speculative_decode,
    verify_by_rejection,
    verify_by_sampling,
)

QUOTIENTS = sorted({Fraction(k, m) for m in range(1, 5) for k in range(m + 1)})
COINS = [(float((a + b) / 2), b - a) for a, b in itertools.pairwise(QUOTIENTS)]
QUARTERS = [
    row for row in itertools.product(range(5), repeat=3) if sum(row) == 4
]  # all distributions over three tokens
Tokens = tuple[int, ...]


class Table:
    """A next-token distribution that depends on the last token and on parity of the length."""

    def __init__(self, quarters: list[tuple[int, ...]]) -> None:
        self.quarters = quarters

    def row(self, prefix: Tokens) -> tuple[int, ...]:
        vocab = len(self.quarters[0])
        return self.quarters[(prefix[-1] + vocab * (len(prefix) % 2)) % len(self.quarters)]

    def __call__(self, prefix: Tokens) -> np.ndarray:
        return np.array(self.row(prefix)) / 4

    def probability(self, prefix: Tokens, token: int) -> Fraction:
        return Fraction(self.row(prefix)[token], 4)

    def continuations(self, prefix: Tokens, count: int) -> Iterator[tuple[Tokens, Fraction]]:
        """All continuations of positive probability."""
        if count == 0:
            yield (), Fraction(1)
            return
        for token in range(len(self.row(prefix))):
            here = self.probability(prefix, token)
            if here:
                for tail, rest in self.continuations((*prefix, token), count - 1):
                    yield (token, *tail), here * rest


tables = st.lists(st.sampled_from(QUARTERS), min_size=6, max_size=6).map(Table)
real_tables = st.lists(
    st.lists(st.floats(0.01, 1), min_size=4, max_size=4), min_size=8, max_size=8
).map(
    lambda rows: (
        lambda p: np.array(rows[(3 * p[-1] + len(p)) % 8]) / sum(rows[(3 * p[-1] + len(p)) % 8])
    )
)


def enumerate_coins(count: int) -> Iterator[tuple[list[float], Fraction]]:
    for choice in itertools.product(COINS, repeat=count):
        weight = Fraction(1)
        for _, width in choice:
            weight *= width
        yield [coin for coin, _ in choice], weight


def completed(
    emitted: dict[Tokens, Fraction], target: Table, prefix: Tokens, length: int
) -> dict[Tokens, Fraction]:
    """Lengthen every emission by plain decoding, so that all can be compared."""
    total: dict[Tokens, Fraction] = {}
    for tokens, weight in emitted.items():
        for tail, rest in target.continuations((*prefix, *tokens), length - len(tokens)):
            total[(*tokens, *tail)] = total.get((*tokens, *tail), Fraction(0)) + weight * rest
    return total


def emission_by_sampling(tree: DraftTree, target: Table) -> dict[Tokens, Fraction]:
    inner = sorted(set(tree.parents.tolist()) - {-1})
    emitted: dict[Tokens, Fraction] = {}
    for drawn, weight in enumerate_coins(len(inner) + 1):
        coins = np.zeros(len(tree.tokens))
        coins[inner] = drawn[:-1]
        tokens = verify_by_sampling(tree, target, coins=coins, final_coin=drawn[-1]).tokens
        emitted[tokens] = emitted.get(tokens, Fraction(0)) + weight
    return emitted


def tree_of(prefix: Tokens, tokens: list[int], parents: list[int]) -> DraftTree:
    return DraftTree(prefix, np.array([prefix[-1], *tokens]), np.array([-1, *parents]))


SHAPES = {
    "no children": ([], []),
    "chain": ([1, 2], [0, 1]),
    "siblings": ([2, 0], [0, 0]),
    "all tokens": ([2, 0, 1], [0, 0, 0]),
    "two levels": ([1, 0, 2, 1], [0, 0, 1, 1]),
    "both branches": ([1, 0, 2, 1, 0], [0, 0, 1, 2, 1]),
}


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=8, deadline=None)
@given(target=tables)
def test_target_only_sampling_keeps_the_exact_target_distribution(
    shape: str, target: Table
) -> None:
    prefix = (0, 2)
    emitted = emission_by_sampling(tree_of(prefix, *SHAPES[shape]), target)
    assert sum(emitted.values()) == 1
    length = max(map(len, emitted))
    expected = dict(target.continuations(prefix, length))
    assert completed(emitted, target, prefix, length) == expected


@settings(max_examples=6, deadline=None)
@given(target=tables, draft=tables)
def test_rejection_sampling_keeps_the_exact_target_distribution(
    target: Table, draft: Table
) -> None:
    prefix, steps = (1,), 2
    emitted: dict[Tokens, Fraction] = {}
    for draft_tokens, draft_weight in draft.continuations(prefix, steps):
        proposals = np.stack([draft((*prefix, *draft_tokens[:i])) for i in range(steps)])
        chain = DraftTree(
            prefix, np.array([*prefix, *draft_tokens]), np.arange(-1, steps), proposals
        )
        for drawn, weight in enumerate_coins(steps + 1):
            verified = verify_by_rejection(
                chain, target, coins=[*drawn[:-1], 0.0], final_coin=drawn[-1]
            )
            emitted[verified.tokens] = (
                emitted.get(verified.tokens, Fraction(0)) + weight * draft_weight
            )
    assert sum(emitted.values()) == 1
    expected = dict(target.continuations(prefix, steps + 1))
    assert completed(emitted, target, prefix, steps + 1) == expected


@settings(max_examples=6, deadline=None)
@given(target=tables, draft=tables)
def test_rejection_sampling_of_an_argmax_chain_keeps_the_exact_target_distribution(
    target: Table, draft: Table
) -> None:
    prefix = (2,)
    chain = draft_chain(prefix, draft, 2)
    emitted: dict[Tokens, Fraction] = {}
    for drawn, weight in enumerate_coins(3):
        verified = verify_by_rejection(
            chain, target, coins=[*drawn[:-1], 0.5], final_coin=drawn[-1]
        )
        emitted[verified.tokens] = emitted.get(verified.tokens, Fraction(0)) + weight
    assert completed(emitted, target, prefix, 3) == dict(target.continuations(prefix, 3))


def enumerate_runs(run: Callable[[Callable[[int], list[float]]], Tokens]) -> dict[Tokens, Fraction]:
    """Exact output distribution of a program that asks for coins, by replaying every branch."""
    outcome: dict[Tokens, Fraction] = {}
    pending: list[list[tuple[float, Fraction]]] = [[]]
    while pending:
        script = pending.pop()
        used = 0

        def coins(count: int, script: list = script) -> list[float]:
            nonlocal used
            used += count
            return [coin for coin, _ in (script + [COINS[0]] * used)[used - count : used]]

        tokens = run(coins)
        if used > len(script):
            pending += [[*script, choice] for choice in COINS]
            continue
        weight = Fraction(1)
        for _, width in script:
            weight *= width
        outcome[tokens] = outcome.get(tokens, Fraction(0)) + weight
    return outcome


SMALL = Table([(2, 2), (3, 1), (4, 0), (1, 3)])


@pytest.mark.parametrize("eos", [None, 0, 1])
def test_a_whole_sampled_generation_has_the_distribution_of_plain_decoding(
    eos: int | None,
) -> None:
    def plainly(coins: Callable[[int], list[float]]) -> Tokens:
        return decode_plainly((0,), SMALL, max_new_tokens=2, eos_token=eos, coins=coins)

    def speculatively(rule: str) -> Callable[[Callable[[int], list[float]]], Tokens]:
        def run(coins: Callable[[int], list[float]]) -> Tokens:
            draft = Table([(1, 3), (2, 2), (2, 2), (3, 1)])
            return speculative_decode(
                (0,),
                SMALL,
                lambda prefix: draft_chain(prefix, draft, 1),
                max_new_tokens=2,
                rule=rule,
                eos_token=eos,
                coins=coins,
            ).tokens

        return run

    expected = enumerate_runs(plainly)
    assert sum(expected.values()) == 1
    assert enumerate_runs(speculatively("target-only")) == expected
    assert enumerate_runs(speculatively("rejection")) == expected


@pytest.mark.parametrize("rule", ["target-only", "rejection"])
def test_long_sampled_generations_match_plain_frequencies(rule: str) -> None:
    target = Table([(1, 2, 1), (2, 1, 1), (0, 3, 1), (1, 1, 2), (2, 2, 0), (1, 0, 3)])
    draft = Table([(2, 1, 1), (1, 1, 2), (1, 2, 1), (2, 0, 2), (1, 3, 0), (2, 1, 1)])
    generator = np.random.default_rng(7)
    counts: dict[Tokens, int] = {}
    runs = 4000
    for _ in range(runs):
        tokens = speculative_decode(
            (0,),
            target,
            lambda prefix: draft_chain(prefix, draft, 2, coins=generator.random(2)),
            max_new_tokens=4,
            rule=rule,
            coins=generator.random,
        ).tokens
        counts[tokens] = counts.get(tokens, 0) + 1
    for tokens, probability in target.continuations((0,), 4):
        p = float(probability)
        assert abs(counts.get(tokens, 0) / runs - p) < 5 * np.sqrt(p * (1 - p) / runs) + 1e-9
    assert set(counts) <= {tokens for tokens, _ in target.continuations((0,), 4)}


DRAFTERS: dict[str, Callable] = {
    "chain": lambda p, draft: draft_chain(p, draft, 3),
    "static tree": lambda p, draft: draft_tree(p, draft, [2, 3, 1]),
    "dynamic tree": lambda p, draft: draft_dynamic_tree(
        p, draft, topk=2, num_steps=3, num_draft_tokens=7
    ),
}


@pytest.mark.parametrize("drafter", DRAFTERS)
@settings(max_examples=30, deadline=None)
@given(
    target=real_tables,
    draft=real_tables,
    limit=st.integers(1, 12),
    eos=st.none() | st.integers(0, 3),
)
def test_greedy_speculation_emits_the_plain_greedy_tokens(
    drafter: str, target: Callable, draft: Callable, limit: int, eos: int | None
) -> None:
    decoded = speculative_decode(
        (1, 2),
        target,
        lambda prefix: DRAFTERS[drafter](prefix, draft),
        max_new_tokens=limit,
        eos_token=eos,
    )
    assert decoded.tokens == decode_plainly((1, 2), target, max_new_tokens=limit, eos_token=eos)
    assert 1 + sum(decoded.accept_lengths) >= len(decoded.tokens)
    assert all(1 <= length <= 4 for length in decoded.accept_lengths)


@given(target=real_tables, steps=st.integers(1, 5))
def test_a_draft_equal_to_the_target_is_accepted_whole(target: Callable, steps: int) -> None:
    decoded = speculative_decode(
        (3,),
        target,
        lambda prefix: draft_chain(prefix, target, steps),
        max_new_tokens=1 + 3 * (steps + 1),
    )
    assert decoded.accept_lengths == (steps + 1,) * 3
    assert len(decoded.tokens) == 1 + sum(decoded.accept_lengths)


@given(target=real_tables, seed=st.integers(0, 100))
def test_a_sampled_draft_equal_to_the_target_is_never_rejected(target: Callable, seed: int) -> None:
    generator = np.random.default_rng(seed)
    chain = draft_chain((1,), target, 4, coins=generator.random(4))
    verified = verify_by_rejection(
        chain, target, coins=generator.random(5), final_coin=generator.random()
    )
    assert verified.accept_length == 5
    assert verified.nodes == (0, 1, 2, 3, 4)


def next_is_successor(prefix: Tokens) -> np.ndarray:
    return np.eye(6)[(prefix[-1] + 1) % 6]


def test_an_end_token_inside_a_round_cuts_the_output_after_it() -> None:
    decoded = speculative_decode(
        (0,),
        next_is_successor,
        lambda prefix: draft_chain(prefix, next_is_successor, 4),
        max_new_tokens=50,
        eos_token=3,
    )
    assert decoded.tokens == (1, 2, 3)
    assert decoded.accept_lengths == (5,)


def test_an_end_token_from_prefill_needs_no_round() -> None:
    decoded = speculative_decode(
        (0,), next_is_successor, lambda prefix: None, max_new_tokens=50, eos_token=1
    )
    assert decoded.tokens == (1,)
    assert decoded.accept_lengths == ()


def test_the_token_limit_cuts_a_round() -> None:
    decoded = speculative_decode(
        (0,),
        next_is_successor,
        lambda prefix: draft_chain(prefix, next_is_successor, 2),
        max_new_tokens=5,
    )
    assert decoded.tokens == (1, 2, 3, 4, 5)
    assert decoded.accept_lengths == (3, 3)


def decode(**changes: object) -> object:
    arguments = {
        "prompt": (0,),
        "target": next_is_successor,
        "drafter": lambda prefix: draft_chain(prefix, next_is_successor, 1),
        "max_new_tokens": 3,
    } | changes
    return speculative_decode(**arguments)


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "rule": (lambda: decode(rule="lossy"), "rule = 'lossy'.*greedy"),
    "coins with greedy": (lambda: decode(coins=np.zeros), "coins.*None for rule 'greedy'"),
    "no coins": (lambda: decode(rule="target-only"), "coins = None.*'target-only'"),
    "bad coins from the source": (
        lambda: decode(rule="target-only", coins=np.ones),
        r"coins = \[1\.0\]",
    ),
    "no prompt": (lambda: decode(prompt=()), r"prompt = \(\)"),
    "no new tokens": (lambda: decode(max_new_tokens=0), "max_new_tokens = 0"),
    "drafter with another prefix": (
        lambda: decode(drafter=lambda prefix: draft_chain((9,), next_is_successor, 1)),
        r"drafter = \(9,\)",
    ),
    "plain without a prompt": (
        lambda: decode_plainly((), next_is_successor, max_new_tokens=1),
        r"prompt = \(\)",
    ),
    "plain without tokens": (
        lambda: decode_plainly((0,), next_is_successor, max_new_tokens=0),
        "max_new_tokens = 0",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_user_error_names_the_argument_its_value_and_the_range(name: str) -> None:
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()
