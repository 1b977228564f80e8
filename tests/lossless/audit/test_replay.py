"""An answer is compared token by token with what plain decoding says.

The decoding itself needs a server (`tests/serving/test_specvlm_audit.py`); here it reads a script.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from specvlm_sglang.host.plain_decoding import Step
from specvlm_sglang.lossless.audit.recorded import Recorded
from specvlm_sglang.lossless.audit.replay import Mismatch, Replay, Verdict


class ScriptedDecoding:
    """Stands in for the target: says the given tokens, then is finished."""

    def __init__(self, tokens: Iterable[int | None], *, logits: torch.Tensor) -> None:
        self._tokens = list(tokens)
        self._logits = logits
        self.released = 0

    @property
    def finished(self) -> bool:
        return not self._tokens

    def step(self) -> Step | None:
        token = self._tokens.pop(0)
        return None if token is None else Step(token, self._logits)

    def release(self) -> None:
        self.released += 1


LOGITS = torch.tensor([0.0, 1.0, 2.0, 3.5, -torch.inf])


def replayed(answer: tuple[int, ...], tokens: Iterable[int | None]) -> tuple[Verdict, int]:
    """The verdict, and after how many passes it was there."""
    recorded = Recorded("rid", answer, array("q", range(11)), None, {}, None)
    decoding: Any = ScriptedDecoding(tokens, logits=LOGITS)
    replay = Replay(recorded, decoding)
    passes = 1
    while (verdict := replay.step()) is None:
        passes += 1
    return verdict, passes


def test_the_same_tokens_to_the_same_end_are_no_mismatch() -> None:
    assert replayed((1, 2, 3), [1, 2, 3]) == (Verdict(None), 3)


def test_passes_of_a_chunked_prefill_say_nothing_yet() -> None:
    assert replayed((1, 2), [None, None, 1, 2]) == (Verdict(None), 4)


def test_the_first_difference_ends_the_replay_with_both_tokens_and_their_logits() -> None:
    verdict, passes = replayed((1, 2, 3, 3), [None, 1, 3, 0, 0])
    assert passes == 3
    assert verdict.mismatch == Mismatch(
        id="rid",
        position=1,
        token=2,
        replayed_token=3,
        logit=2.0,
        replayed_logit=3.5,
        gap=1.5,
        length=4,
        replayed_length=2,
        prompt_tokens=11,
    )


def test_a_token_that_the_grammar_forbids_has_no_logit() -> None:
    mismatch = replayed((4,), [3])[0].mismatch
    assert mismatch is not None
    assert (mismatch.logit, mismatch.replayed_logit, mismatch.gap) == (None, 3.5, None)


def test_an_answer_that_ends_too_early_differs_at_its_end() -> None:
    mismatch = replayed((1, 2), [1, 2, 3, 0])[0].mismatch
    assert mismatch is not None
    assert (mismatch.position, mismatch.token, mismatch.replayed_token) == (2, None, 3)
    assert (mismatch.length, mismatch.replayed_length) == (2, 3)
    assert (mismatch.logit, mismatch.replayed_logit, mismatch.gap) == (None, 3.5, None)


def test_an_answer_that_goes_on_after_its_end_differs_there() -> None:
    mismatch = replayed((1, 2, 3), [1, 2])[0].mismatch
    assert mismatch is not None
    assert (mismatch.position, mismatch.token, mismatch.replayed_token) == (2, 3, None)
    assert (mismatch.length, mismatch.replayed_length) == (3, 2)
    assert mismatch.gap is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_mismatch_is_ready_for_json(dtype: torch.dtype) -> None:
    import json

    recorded = Recorded("rid", (1,), array("q", [5]), None, {}, None)
    decoding: Any = ScriptedDecoding([2], logits=LOGITS.to(dtype))
    verdict = Replay(recorded, decoding).step()
    assert verdict is not None
    assert verdict.mismatch is not None
    shown = json.loads(json.dumps(verdict.mismatch.as_dict()))
    assert (shown["token"], shown["replayed_token"], shown["gap"]) == (1, 2, 1.0)
