"""Token ids and embeddings that the model has no room for are refused by their place."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from specvlm_sglang.host.token_inputs import check_embeds, check_ids, check_top_logprobs


@pytest.mark.parametrize("ids", [[0, 9], array("q", [3])])
def test_ids_of_the_vocabulary_pass(ids: Any) -> None:
    check_ids(ids, 10)


@pytest.mark.parametrize("wrong", [-1, 10, 2**70, 1.5, "x", None, [], True])
def test_other_ids_are_named(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"input_ids\[1\]=.* must be an integer from 0 to 9"):
        check_ids([5, wrong], 10)


def test_embeddings_have_the_models_width() -> None:
    check_embeds([[0.0, 1.0]], 2)
    for wrong in ([0.0], [], "ab", 1.0):
        with pytest.raises(ValueError, match=r"input_embeds\[1\] has .* numbers, not 2"):
            check_embeds([[0.0, 1.0], wrong], 2)


def test_a_prompt_has_at_least_one_token() -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        check_ids([], 10)
    with pytest.raises(ValueError, match="input_embeds is empty"):
        check_embeds([], 2)


def test_no_more_likely_tokens_are_asked_for_than_there_are() -> None:
    for number in (None, 0, 10):
        check_top_logprobs(number, 10)
    for number in (-1, 11, 2.5):
        with pytest.raises(ValueError, match=f"top_logprobs_num={number} must be an integer"):
            check_top_logprobs(number, 10)
