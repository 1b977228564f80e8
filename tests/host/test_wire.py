"""What the scheduler could not read is refused by its field."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
import torch
from sglang.srt.managers.embed_types import PositionalEmbeds
from sglang.srt.managers.io_struct import SessionParams, TokenizedGenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from specvlm_sglang.host.wire import check


def message(**fields: Any) -> TokenizedGenerateReqInput:
    return TokenizedGenerateReqInput(
        rid="r",
        input_text="hello",
        input_ids=array("q", [1, 2]),
        input_embeds=None,
        mm_inputs=None,
        token_type_ids=None,
        sampling_params=SamplingParams(max_new_tokens=4),
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=False,
        **fields,
    )


def test_requests_as_sglang_makes_them_pass() -> None:
    check(message())
    check(message(session_params=SessionParams(id="s")))
    check(message(time_stats=object()))
    embeds = PositionalEmbeds(embeds=torch.zeros(1, 4), positions=[0])
    check(message(positional_embed_overrides=embeds))


@pytest.mark.parametrize(
    "fields",
    [
        {"positional_embed_overrides": {"a": 1}},
        {"priority": 2**70},
        {"extra_key": 5},
        {"lora_id": ["x"]},
        {"session_params": [1]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_other_types_are_refused_by_their_field(fields: dict[str, Any]) -> None:
    made = message(**fields)
    with pytest.raises(ValueError, match=f"^({next(iter(fields))}|a field) has a type"):
        check(made)
