"""Penalties on what was already emitted: in plain decoding, and at every node of a draft tree.

A penalty changes the next token's logits by the tokens of the OUTPUT so far; the prompt does not
count (SGLang's meaning; Hugging Face's repetition penalty counts the prompt too). Verification
judges several positions at once, so each node of a draft tree has an output of its own: what was
emitted before the round and the drafted tokens on the path to the node. Judged with that output a
node's logits are those that plain decoding would have there, whatever else was drafted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reference.trees import DraftTree, FloatArray, NextTokenProbabilities, Prefix, require


@dataclass(frozen=True)
class Penalties:
    """The sampling parameters that look back at the output.

    Attributes
    ----------
    frequency : float
        In [-2, 2]; subtracted once per occurrence of a token.
    presence : float
        In [-2, 2]; subtracted from every token that occurred.
    repetition : float
        In (0, 2]; a token that occurred has its logit divided by this if positive, multiplied by it
        if negative, after the other two were subtracted.
    min_new_tokens : int
        As long as the output is shorter, no stop token can be chosen.
    stop_tokens : tuple of int
        Tokens that end an answer.

    Raises
    ------
    ValueError
        A value out of its range.
    """

    frequency: float = 0.0
    presence: float = 0.0
    repetition: float = 1.0
    min_new_tokens: int = 0
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(-2 <= self.frequency <= 2, "frequency", self.frequency, "[-2, 2]")
        require(-2 <= self.presence <= 2, "presence", self.presence, "[-2, 2]")
        require(0 < self.repetition <= 2, "repetition", self.repetition, "(0, 2]")
        require(self.min_new_tokens >= 0, "min_new_tokens", self.min_new_tokens, ">= 0")


def penalise(logits: npt.ArrayLike, output: Sequence[int], penalties: Penalties) -> FloatArray:
    """Return the logits of the token that follows ``output``.

    Parameters
    ----------
    logits : float array [vocab]
        The model's own.
    output : sequence of int
        Tokens emitted so far, without the prompt.
    penalties : Penalties

    Returns
    -------
    float64 array [vocab]

    Raises
    ------
    ValueError
        Logits that are no row, or a token outside their vocabulary.

    Notes
    -----
    Source: SGLang ``sampling/penaltylib``; the order is that of
    ``SamplingBatchInfo.copy_for_forward``: what is added first, then what scales.
    """
    row = np.array(logits, dtype=np.float64)
    require(row.ndim == 1, "logits", row.shape, "shape (vocab,)")
    for token in (*output, *penalties.stop_tokens):
        require(0 <= token < len(row), "token", token, f"[0, {len(row)})")
    counts = np.bincount(np.asarray(output, dtype=np.int64), minlength=len(row))
    row -= penalties.frequency * counts + penalties.presence * (counts > 0)
    if len(output) < penalties.min_new_tokens:
        row[list(penalties.stop_tokens)] = -np.inf
    scale = np.where(counts > 0, penalties.repetition, 1.0)
    penalised: FloatArray = np.where(row < 0, row * scale, row / scale)
    return penalised


def penalise_nodes(
    tree: DraftTree, logits: npt.ArrayLike, prompt_length: int, penalties: Penalties
) -> FloatArray:
    """Return the logits after each node of a tree.

    Parameters
    ----------
    tree : DraftTree
        What was drafted; its prefix is the prompt and all that was emitted.
    logits : float array [n, vocab]
        The model's own, after each node.
    prompt_length : int
        Leading tokens of the prefix that are the prompt: at least one, not all.
    penalties : Penalties

    Returns
    -------
    float64 array [n, vocab]

    Raises
    ------
    ValueError
        Logits of another shape, a prompt that is empty or the whole prefix, and what `penalise`
        raises.
    """
    rows = np.asarray(logits, dtype=np.float64)
    nodes = len(tree.tokens)
    require(rows.ndim == 2 and len(rows) == nodes, "logits", rows.shape, f"shape ({nodes}, vocab)")
    _check_prompt_length(prompt_length, tree.prefix)
    return np.stack(
        [penalise(rows[node], tree.path(node)[prompt_length:], penalties) for node in range(nodes)]
    )


def penalised_target(
    next_logits: Callable[[Prefix], npt.ArrayLike], prompt_length: int, penalties: Penalties
) -> NextTokenProbabilities:
    """Return the distribution that penalised decoding draws from, for `reference.decoding`.

    Parameters
    ----------
    next_logits : callable
        Maps all tokens so far to the model's own logits, ``[vocab]``.
    prompt_length : int
        Tokens of the prompt, at least one.
    penalties : Penalties

    Returns
    -------
    callable
        A softmax over the penalised logits.
    """

    def next_probabilities(prefix: Prefix) -> FloatArray:
        require(1 <= prompt_length <= len(prefix), "prompt_length", prompt_length, "the prefix")
        row = penalise(next_logits(prefix), prefix[prompt_length:], penalties)
        weights = np.exp(row - row.max())
        probabilities: FloatArray = weights / weights.sum()
        return probabilities

    return next_probabilities


def _check_prompt_length(prompt_length: int, prefix: Prefix) -> None:
    require(1 <= prompt_length < len(prefix), "prompt_length", prompt_length, f"[1, {len(prefix)})")
