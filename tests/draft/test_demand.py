"""How many requests run together, and how long answers become."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH, FINISH_MATCHED_TOKEN

from specvlm_sglang.draft.demand import REMEMBERED, UNKNOWN, Demand


def answer(tokens: int, reason: Any = None) -> Any:
    """What `Demand` reads of SGLang's ``Req``."""
    return _Req(tokens, reason)


class _Req:
    def __init__(self, tokens: int, reason: Any) -> None:
        self.output_ids = [0] * tokens
        self.finished_reason = reason

    def finished(self) -> bool:
        return self.finished_reason is not None


def ended(demand: Demand, *answers: Any) -> None:
    """They ran in a round, and have ended by the next."""
    reasons = [one.finished_reason for one in answers]
    for one in answers:
        one.finished_reason = None
    demand.round(answers)
    for one, reason in zip(answers, reasons, strict=True):
        one.finished_reason = reason
    demand.round([])


def test_an_answer_becomes_as_long_as_it_may_where_nothing_is_known() -> None:
    demand = Demand()
    assert demand.lengths(1, 40) == [40]
    assert demand.lengths(1, None) == [UNKNOWN]


def test_answers_end_as_the_last_ones_did() -> None:
    demand = Demand()
    ended(demand, answer(6, FINISH_MATCHED_TOKEN(2)), answer(30, FINISH_MATCHED_TOKEN(2)))
    assert demand.lengths(1, 1000) == [5, 29]
    assert demand.lengths(1, 10) == [5, 10]
    assert demand.lengths(11, None) == [0, 19]


@pytest.mark.parametrize("reason", [FINISH_LENGTH(4), FINISH_ABORT("gone")])
def test_what_was_cut_might_have_become_longer(reason: Any) -> None:
    demand = Demand()
    ended(demand, answer(4, reason))
    assert demand.lengths(1, 100) == [100]
    assert demand.lengths(1, None) == [UNKNOWN]


def test_only_the_last_answers_count() -> None:
    demand = Demand()
    ended(demand, *[answer(500, FINISH_MATCHED_TOKEN(2))] * 2)
    for _ in range(REMEMBERED):
        ended(demand, answer(3, FINISH_MATCHED_TOKEN(2)))
    assert demand.lengths(1, 1000) == [2] * REMEMBERED


def test_a_request_meets_those_that_run_and_those_that_came_before_it() -> None:
    demand = Demand()
    demand.arrived()
    assert demand.together == 1
    demand.arrived()
    assert demand.together == 2
    running = [answer(1), answer(1), answer(1)]
    demand.round(running)
    assert demand.together == 3
    demand.arrived()
    assert demand.together == 4
    running[0].finished_reason = FINISH_LENGTH(1)
    assert demand.together == 3
    for one in running:
        one.finished_reason = FINISH_LENGTH(1)
    demand.round([])
    assert demand.together == 1


def test_no_request_is_kept_alive() -> None:
    demand, gone = Demand(), answer(1)
    demand.round([gone])
    seen = weakref.ref(gone)
    del gone
    assert seen() is None
    assert demand.together == 1
    demand.round([])
    assert demand.lengths(1, 40) == [40]
