"""An answer that several accepted tokens reach at once ends where plain decoding ends it."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req
from sglang.srt.sampling.sampling_params import SamplingParams

from specvlm_sglang.host import stops
from tests.support.hooks import unhooked

END = 0
WORDS = ("</s>", "a", "b", "c", "ab", "ca", " ")
"""Text of tokens: a stop string may lie across several."""


class Tokenizer:
    eos_token_id = END
    additional_stop_token_ids = None

    def decode(self, ids: Any) -> str:
        return "".join(WORDS[token] for token in ids)

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(range(len(text)))


class Grammar:
    """Ends with the last token that it has taken."""

    def __init__(self, is_terminated: bool) -> None:
        self._is_terminated = is_terminated

    def is_terminated(self) -> bool:
        return self._is_terminated


@pytest.fixture(autouse=True, scope="module")
def hooked() -> Iterator[None]:
    with unhooked(("sglang.srt.managers.schedule_batch", "Req.update_finish_state")):
        stops.install()
        yield


def req(output: list[int], **sampling: Any) -> Any:
    tokenizer = Tokenizer()
    parameters = SamplingParams(**{"max_new_tokens": 100, **sampling})
    parameters.normalize(tokenizer)
    made = Req("r", None, array("q", [1, 2]), parameters, vocab_size=len(WORDS))
    made.tokenizer = tokenizer
    made.output_ids.extend(output)
    return made


def ending(made: Any) -> tuple[Any, ...]:
    """Why and where an answer ended, if it has."""
    reason = None if made.finished_reason is None else made.finished_reason.to_json()
    return reason, made.finished_len if made.finished() else None, made.finished()


def decoded(before: list[int], run: list[int], **sampling: Any) -> Any:
    """Plain decoding: one token at a time, until the answer ends."""
    made = req(before, **sampling)
    for token in run:
        made.output_ids.append(token)
        made.update_finish_state(1)
        if made.finished():
            # SGLang sets it when it sends the answer.
            if made.finished_len is None:
                made.finished_len = len(made.output_ids)
            break
    return made


def accepted(before: list[int], run: list[int], **sampling: Any) -> Any:
    """A verify round that accepts ``run``."""
    made = req([*before, *run], **sampling)
    made.update_finish_state(len(run))
    return made


A, B, C, AB, CA, SPACE = range(1, 7)


@pytest.mark.parametrize(
    ("sampling", "matched", "length"),
    [
        pytest.param({"stop": ["c"]}, END, 2, id="an end token before a stop string"),
        pytest.param({"stop": ["b", "a"]}, "a", 1, id="the list's second string comes first"),
        pytest.param({"stop": ["c"], "stop_token_ids": [A]}, A, 1, id="a stop token"),
        pytest.param({"stop": ["c"], "stop_regex": ["a"]}, "a", 1, id="an expression"),
        pytest.param({"stop": ["c"], "ignore_eos": True}, "c", 4, id="end tokens ignored"),
    ],
)
def test_what_comes_first_ends_the_answer(
    sampling: dict[str, Any], matched: Any, length: int
) -> None:
    run = [A, END, B, C, SPACE]
    made = accepted([SPACE], run, **sampling)
    assert made.finished_reason.to_json()["matched"] == matched
    assert made.finished_len == 1 + length
    assert list(made.output_ids) == [SPACE, *run], "SGLang counts by the whole run"


def test_the_limit_comes_before_a_later_stop_string() -> None:
    made = accepted([SPACE], [A, B, C], stop=["c"], max_new_tokens=3)
    assert made.finished_reason.to_json() == {"type": "length", "length": 3}
    assert made.finished_len == 3


@given(
    before=st.lists(st.integers(1, 6), max_size=3),
    run=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    stop=st.lists(st.text("abc ", min_size=1, max_size=3), max_size=3),
    regexes=st.lists(st.sampled_from(["a+b", "c$", "[bc] ", "^ca"]), max_size=2),
    token_ids=st.lists(st.integers(0, 6), max_size=2),
    limit=st.integers(4, 10),
)
def test_a_run_ends_as_one_token_after_the_other_does(
    before: list[int],
    run: list[int],
    stop: list[str],
    regexes: list[str],
    token_ids: list[int],
    limit: int,
) -> None:
    sampling = {
        "stop": stop,
        "stop_regex": regexes,
        "stop_token_ids": token_ids,
        "max_new_tokens": limit,
    }
    right = decoded(before, run, **sampling)
    made = accepted(before, run, **sampling)
    assert ending(made) == ending(right)
    assert list(made.output_ids) == [*before, *run]


def test_only_the_last_token_may_end_by_the_grammar() -> None:
    made = req([A, B, C], stop=["x"])
    made.grammar = Grammar(True)
    made.update_finish_state(3)
    assert (made.finished_reason.matched, made.finished_len) == (C, 3)
    made = req([A, B, C], stop=["b"])
    made.grammar = grammar = Grammar(True)
    made.update_finish_state(3)
    assert (made.finished_reason.matched, made.finished_len) == ("b", 2)
    assert made.grammar is grammar


def test_an_abort_ends_the_request_whatever_was_accepted() -> None:
    made = req([A, B], stop=["a"])
    made.to_finish = FINISH_ABORT("gone")
    made.update_finish_state(2)
    assert made.finished_reason.to_json()["message"] == "gone"
    assert list(made.output_ids) == [A, B]


def test_requests_without_stop_text_are_seen_as_before() -> None:
    seen: list[int] = []
    hooked = stops._in_order(lambda self, count: seen.append(count))
    made = SimpleNamespace(
        sampling_params=SamplingParams(max_new_tokens=9), finished=lambda: False, to_finish=None
    )
    made.sampling_params.normalize(None)
    hooked(made, 4)
    assert seen == [4]
