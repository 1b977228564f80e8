"""Lossless speculative decoding over next-token probability functions.

One round: draft a tree after the tokens so far, verify it with the target, emit the accepted path
and one token of the target's own. Greedy verification emits the target's own greedy tokens; both
sampling rules emit tokens distributed exactly as the target's, whatever the draft proposes.

Drafting lives in `reference.drafting`, verification in `reference.verification`, the shape of trees
in `reference.trees`; all of it is offered here as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from reference.drafting import draft_chain, draft_dynamic_tree, draft_tree
from reference.trees import (
    DraftTree,
    NextTokenProbabilities,
    Prefix,
    RetrievalArrays,
    check_coins,
    next_token_row,
    parents_from_selection,
    require,
    retrieval_arrays,
    sample_index,
    tree_attention_mask,
    tree_depths,
)
from reference.verification import (
    Verified,
    verify_by_rejection,
    verify_by_sampling,
    verify_greedily,
)

__all__ = [
    "CoinSource",
    "Decoded",
    "DraftTree",
    "Drafter",
    "RetrievalArrays",
    "Rule",
    "Verified",
    "decode_plainly",
    "draft_chain",
    "draft_dynamic_tree",
    "draft_tree",
    "parents_from_selection",
    "retrieval_arrays",
    "speculative_decode",
    "tree_attention_mask",
    "tree_depths",
    "verify_by_rejection",
    "verify_by_sampling",
    "verify_greedily",
]

CoinSource = Callable[[int], npt.ArrayLike]
"""Returns that many fresh coins: ``numpy.random.default_rng(seed).random`` is one."""
Drafter = Callable[[Prefix], DraftTree]
"""Drafts after all tokens so far."""
Rule = Literal["greedy", "target-only", "rejection"]


@dataclass(frozen=True)
class Decoded:
    """A finished toy generation.

    Attributes
    ----------
    tokens : tuple of int
        Generated tokens; an end token is the last of them.
    accept_lengths : tuple of int
        Per verify round, bonus included, before the last round was cut at the end token or the
        token limit. The first token comes from prefill and belongs to no round.
    """

    tokens: Prefix
    accept_lengths: tuple[int, ...]


def decode_plainly(
    prompt: Sequence[int],
    target: NextTokenProbabilities,
    *,
    max_new_tokens: int,
    eos_token: int | None = None,
    coins: CoinSource | None = None,
) -> Prefix:
    """Decode token by token: what speculative decoding must reproduce.

    Parameters
    ----------
    prompt : sequence of int
        At least one token.
    target : callable
        The target's next-token distribution.
    max_new_tokens : int
        >= 1.
    eos_token : int, optional
        Generation ends with it; it is part of the output.
    coins : CoinSource, optional
        One coin is drawn per token. Without it each token is the argmax.

    Returns
    -------
    tuple of int
        The generated tokens.

    Raises
    ------
    ValueError
        Empty prompt, ``max_new_tokens`` below 1, bad coins, a target distribution that is none.
    """
    _check_request(prompt, max_new_tokens)
    tokens: Prefix = ()
    while not _is_finished(tokens, max_new_tokens, eos_token):
        tokens += (_next_token(target, (*prompt, *tokens), coins),)
    return tokens


def speculative_decode(
    prompt: Sequence[int],
    target: NextTokenProbabilities,
    drafter: Drafter,
    *,
    max_new_tokens: int,
    rule: Rule = "greedy",
    eos_token: int | None = None,
    coins: CoinSource | None = None,
) -> Decoded:
    """Decode in rounds of drafting and verification.

    The first token comes from the target's prefill, as in SGLang; every round then drafts after all
    tokens so far and emits what verification returns. The output is cut after the first end token
    and at ``max_new_tokens``, exactly where `decode_plainly` stops.

    Parameters
    ----------
    prompt : sequence of int
        At least one token.
    target : callable
        The target's next-token distribution.
    drafter : callable
        Maps all tokens so far to a `DraftTree` with that prefix.
    max_new_tokens : int
        >= 1.
    rule : {"greedy", "target-only", "rejection"}
        `verify_greedily`, `verify_by_sampling` or `verify_by_rejection`.
    eos_token : int, optional
        Generation ends with it; it is part of the output.
    coins : CoinSource, optional
        Required by, and only by, the sampling rules: one coin for the prefill's token, then one per
        node and one final coin in each round.

    Returns
    -------
    Decoded

    Raises
    ------
    ValueError
        Empty prompt, ``max_new_tokens`` below 1, unknown rule, coins missing or superfluous, a tree
        with another prefix, and what the verifiers raise.
    """
    _check_request(prompt, max_new_tokens)
    require(rule in get_args(Rule), "rule", rule, f"one of {get_args(Rule)}")
    require(rule != "greedy" or coins is None, "coins", coins, "None for rule 'greedy'")
    require(rule == "greedy" or coins is not None, "coins", coins, f"a source for rule {rule!r}")
    tokens: Prefix = (_next_token(target, tuple(prompt), coins),)
    accept_lengths: list[int] = []
    while not _is_finished(tokens, max_new_tokens, eos_token):
        tree = drafter((*prompt, *tokens))
        require(
            tree.prefix == (*prompt, *tokens), "drafter", tree.prefix, "a tree with its own prefix"
        )
        verified = _verify(tree, target, rule, coins)
        accept_lengths.append(verified.accept_length)
        for token in verified.tokens:
            tokens += (token,)
            if _is_finished(tokens, max_new_tokens, eos_token):
                break
    return Decoded(tokens, tuple(accept_lengths))


def _verify(
    tree: DraftTree, target: NextTokenProbabilities, rule: Rule, coins: CoinSource | None
) -> Verified:
    if coins is None:
        return verify_greedily(tree, target)
    count = len(tree.tokens) + 1
    drawn = check_coins("coins", coins(count), count)
    verify = verify_by_sampling if rule == "target-only" else verify_by_rejection
    return verify(tree, target, coins=drawn[:-1], final_coin=float(drawn[-1]))


def _next_token(target: NextTokenProbabilities, prefix: Prefix, coins: CoinSource | None) -> int:
    row = next_token_row(target, prefix, "target")
    if coins is None:
        return int(np.argmax(row))
    return sample_index(row, float(check_coins("coins", coins(1), 1)[0]))


def _is_finished(tokens: Prefix, max_new_tokens: int, eos_token: int | None) -> bool:
    has_ended = eos_token is not None and tokens[-1:] == (eos_token,)
    return has_ended or len(tokens) >= max_new_tokens


def _check_request(prompt: Sequence[int], max_new_tokens: int) -> None:
    require(len(prompt) >= 1, "prompt", tuple(prompt), "at least one token")
    require(max_new_tokens >= 1, "max_new_tokens", max_new_tokens, ">= 1")
