"""Accept lengths counted from one forward against drafting and verifying round by round."""

import numpy as np
import pytest

from benchmarks.tinyvid.acceptance import Rounds, count_rounds, interval
from reference.decoding import draft_chain, speculative_decode

END = 9


@pytest.mark.parametrize("seed", range(20))
def test_rounds_counted_from_predictions_are_those_of_speculative_decoding(seed: int) -> None:
    rng = np.random.default_rng(seed)
    answer = [*rng.integers(0, 9, 30).tolist(), END]
    right = rng.random(len(answer)) < 0.75
    predicted = [
        token if hit else (token + 1) % 9 for token, hit in zip(answer, right, strict=True)
    ]
    prompt = (0,)

    def row(tokens, prefix):
        done = len(prefix) - len(prompt)
        on_path = list(prefix[1:]) == answer[:done]
        token = tokens[done] if on_path and done < len(tokens) else END
        return np.eye(10)[token]

    decoded = speculative_decode(
        prompt,
        lambda prefix: row(answer, prefix),
        lambda prefix: draft_chain(prefix, lambda p: row(predicted, p), 5),
        max_new_tokens=len(answer),
        eos_token=END,
    )
    assert list(decoded.tokens) == answer
    counted = count_rounds(predicted, answer, chain=5)
    assert counted == Rounds(len(answer) - 1, len(decoded.accept_lengths))


def test_the_interval_holds_the_mean_and_shrinks_with_more_prompts() -> None:
    rng = np.random.default_rng(0)
    few = [Rounds(100, int(r)) for r in rng.integers(20, 40, 20)]
    mean, low, high = interval(few)
    assert low < mean < high
    _, more_low, more_high = interval(few * 10)
    assert more_high - more_low < (high - low) / 2


def test_a_chain_must_draft_something() -> None:
    with pytest.raises(ValueError, match="chain must be at least 1, got 0"):
        count_rounds([1], [1], chain=0)
