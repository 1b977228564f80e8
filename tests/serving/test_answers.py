"""Answers that differ are told apart, and what may differ is not looked at."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from tests.serving.answers import Answer, accepted, answer_of, differences


def generated(**changed: Any) -> Answer:
    meta = {
        "id": "a",
        "e2e_latency": 0.5,
        "finish_reason": {"type": "stop", "matched": 7},
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "cached_tokens": 1,
        "output_token_logprobs": [[-0.5, 5, "five"], [-0.25, 7, None]],
        "output_top_logprobs": [[[-0.5, 5, "five"], [None, 6, "six"]]],
        **changed.pop("meta", {}),
    }
    return answer_of(
        "generate", {"text": "five", "output_ids": [5, 7], "meta_info": meta, **changed}
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"output_ids": [5, 8]},
        {"text": "Five"},
        {"meta": {"finish_reason": {"type": "stop", "matched": 8}}},
        {"meta": {"finish_reason": {"type": "length", "length": 2}}},
        {"meta": {"prompt_tokens": 4}},
        {"meta": {"completion_tokens": 3}},
        {"meta": {"output_token_logprobs": [[-0.5, 5, "five"], [-0.2502, 7, None]]}},
        {"meta": {"output_token_logprobs": [[-0.5, 5, "five"]]}},
        {"meta": {"output_top_logprobs": [[[-0.5, 5, "five"], [-3.0, 6, "six"]]]}},
        {"meta": {"hidden_states": [[1.0]]}},
    ],
)
def test_what_an_answer_says_is_compared(changed: dict[str, Any]) -> None:
    assert len(differences(generated(), generated(**changed))) >= 1
    assert len(differences(generated(**changed), generated())) >= 1


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"meta": {"id": "b", "e2e_latency": 2.0, "cached_tokens": 0, "spec_verify_ct": 3}},
        {"meta": {"output_token_logprobs": [[-0.50005, 5, "five"], [-0.25, 7, None]]}},
        {"meta": {"output_top_logprobs": [[[-0.5, 5, "five"], [None, 9, "nine"]]]}},
    ],
)
def test_times_caches_drafts_rounding_and_which_banned_token_are_not(
    changed: dict[str, Any],
) -> None:
    assert differences(generated(), generated(**changed)) == []


def test_arrays_in_base64_are_compared_as_numbers() -> None:
    def sent(values: list[float]) -> Answer:
        flat = base64.b64encode(np.array(values, np.float32).tobytes()).decode()
        return generated(meta={"flat_b64": flat, "flat_b64_dtype": "float32"})

    assert differences(sent([0.5, 1.0]), sent([0.50001, 1.0])) == []
    assert differences(sent([0.5, 1.0]), sent([0.6, 1.0]))


def test_a_refusal_is_no_answer() -> None:
    refused = Answer(400, [], "no", "no")
    assert differences(generated(), refused) == ["status 200, 400: no"]


def test_a_stream_is_put_together() -> None:
    def event(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": delta, **more}]}

    logprob = {"token": "A", "logprob": -0.5, "top_logprobs": []}
    streamed = answer_of(
        "chat",
        [
            event({"role": "assistant", "content": ""}),
            event({"content": "A"}, logprobs={"content": [logprob]}),
            event({"content": "B"}, logprobs={"content": [logprob]}),
            event({}, finish_reason="stop", matched_stop="C"),
            {"choices": [], "sglext": {"output_ids": [[1, 2, 3]]}},
        ],
        streamed=True,
    )
    (choice,) = streamed.choices
    assert (choice["text"], choice["ids"]) == ("AB", [1, 2, 3])
    assert (choice["finish_reason"], choice["matched_stop"]) == ("stop", "C")
    assert len(streamed.more["choices"][0]["logprobs"]["content"]) == 2


def test_accepted_tokens_are_counted_over_all_answers() -> None:
    drafted = {"spec_num_correct_drafts": 6, "spec_verify_ct": 2}
    assert accepted([generated(), generated(meta=drafted), generated(meta=drafted)]) == (16, 4)
