"""What rows have emitted: begun by prefills, advanced by verifications, forgotten with the row."""

from __future__ import annotations

import numpy as np
import torch

from reference.penalties import Penalties, penalise
from specvlm_sglang.lossless.emitted import EmittedTokens
from specvlm_sglang.lossless.parameters import LooksBack
from specvlm_sglang.lossless.penalties import Paths, penalise_nodes

VOCABULARY = 10
FREQUENCY = LooksBack(frequency=1.0)


def rows_of(*rows: int) -> torch.Tensor:
    return torch.tensor(rows)


def after_root(emitted: EmittedTokens, *rows: int) -> torch.Tensor:
    """Zero logits, penalised at the roots of trees without a drafted token."""
    logits = torch.zeros(len(rows), VOCABULARY)
    tokens = torch.zeros((len(rows), 1, 1), dtype=torch.int64)
    paths = Paths(tokens, torch.zeros_like(tokens, dtype=torch.bool))
    penalise_nodes(logits, paths, emitted.of_batch(rows, rows_of(*rows)))
    return logits


def counts(emitted: EmittedTokens, row: int) -> list[int]:
    return (-after_root(emitted, row)[0]).int().tolist()


def test_every_accepted_token_of_a_round_counts() -> None:
    emitted = EmittedTokens(4, VOCABULARY, "cpu")
    emitted.begin(2, FREQUENCY, [], torch.tensor([5]))
    emitted.advance(rows_of(2), torch.tensor([[1, 5, 5, 8]]), torch.tensor([3]))
    # 8 stands behind what was accepted.
    assert counts(emitted, 2) == [0, 1, 0, 0, 0, 3, 0, 0, 0, 0]


def test_rows_without_a_penalty_are_left_alone_beside_others() -> None:
    emitted = EmittedTokens(4, VOCABULARY, "cpu")
    emitted.begin(1, None, [], torch.tensor([5]))
    emitted.begin(3, FREQUENCY, [], torch.tensor([5]))
    emitted.advance(rows_of(1, 3), torch.tensor([[4, 4], [6, 0]]), torch.tensor([2, 1]))
    assert after_root(emitted, 1, 3).tolist() == [
        [0.0] * VOCABULARY,
        [0, 0, 0, 0, 0, -1, -1, 0, 0, 0],
    ]
    assert not emitted.looks_back([0, 1, 2])
    assert emitted.looks_back([0, 3])


def test_a_row_that_is_used_again_starts_anew() -> None:
    emitted = EmittedTokens(4, VOCABULARY, "cpu")
    emitted.begin(0, FREQUENCY, [], torch.tensor([5]))
    emitted.advance(rows_of(0), torch.tensor([[1, 2]]), torch.tensor([2]))
    emitted.begin(0, None, [], torch.tensor([7]))
    assert not emitted.looks_back([0])
    # Beside a request with a penalty its old counts must not show.
    emitted.begin(1, FREQUENCY, [], torch.tensor([3]))
    assert after_root(emitted, 0, 1)[0].tolist() == [0.0] * VOCABULARY
    emitted.begin(0, FREQUENCY, [], torch.tensor([7]))
    assert counts(emitted, 0) == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]


def test_a_preempted_request_goes_on_with_what_it_had() -> None:
    asked = LooksBack(frequency=0.5, repetition=1.3, min_new_tokens=9, stop_tokens=(4,))
    emitted = EmittedTokens(2, VOCABULARY, "cpu")
    earlier = [5, 5, 1]
    emitted.begin(0, asked, earlier, torch.tensor([2]))
    chosen = Penalties(0.5, 0.0, 1.3, 9, (4,))
    np.testing.assert_allclose(
        after_root(emitted, 0)[0].double().numpy(),
        penalise(np.zeros(VOCABULARY), [*earlier, 2], chosen),
        atol=1e-6,
    )
    # Its prefill's own token is judged on the scheduler's side, by the same terms.
    subtracted, scale = emitted.terms_after(asked, earlier)
    row = torch.full((VOCABULARY,), 2.0) - subtracted
    expected = penalise(np.full(VOCABULARY, 2.0), earlier, Penalties(0.5, 0.0, 1.3))
    np.testing.assert_allclose((row / scale).double().numpy(), expected, atol=1e-6)


def test_the_minimum_counts_tokens_not_rounds() -> None:
    asked = LooksBack(min_new_tokens=4, stop_tokens=(1, 2))
    emitted = EmittedTokens(2, VOCABULARY, "cpu")
    emitted.begin(0, asked, [], torch.tensor([5]))
    assert after_root(emitted, 0)[0, [1, 2]].tolist() == [-torch.inf] * 2
    emitted.advance(rows_of(0), torch.tensor([[6, 7, 8]]), torch.tensor([3]))
    assert after_root(emitted, 0)[0, [1, 2]].tolist() == [0, 0]


def test_requests_with_more_stop_tokens_than_any_before_widen_the_table() -> None:
    emitted = EmittedTokens(3, VOCABULARY, "cpu")
    one = LooksBack(min_new_tokens=4, stop_tokens=(1,))
    three = LooksBack(min_new_tokens=4, stop_tokens=(0, 2, 9))
    emitted.begin(0, one, [], torch.tensor([5]))
    emitted.begin(1, three, [], torch.tensor([5]))
    emitted.begin(2, one, [], torch.tensor([5]))
    withheld = after_root(emitted, 0, 1, 2).isneginf()
    assert [row.nonzero().flatten().tolist() for row in withheld] == [[1], [0, 2, 9], [1]]


def test_without_penalties_nothing_is_allocated() -> None:
    emitted = EmittedTokens(3, VOCABULARY, "cpu")
    emitted.begin(0, None, [], torch.tensor([5]))
    emitted.begin(1, LooksBack(min_new_tokens=4, stop_tokens=(1,)), [], torch.tensor([5]))
    assert emitted.of_batch([0, 1], rows_of(0, 1)).counts is None
