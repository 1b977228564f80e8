"""What travels with a request's tokens, from its verify rounds to its response."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from specvlm_sglang.report.entries import (
    DRAFT,
    NO_ROUND,
    TARGET,
    ResponseReport,
    RoundEntries,
    align_entries,
)

PENDING = {"policy": "specvlm", "cold": None, "pending": True}
BEGUN = {"policy": "specvlm", "cold": "no room"}


@pytest.fixture
def req() -> Any:
    """SGLang's ``Req`` as far as the rounds go, its prefill done."""
    histogram: list[int] = []
    return SimpleNamespace(
        histogram=histogram,
        update_spec_correct_drafts_histogram=histogram.append,
        customized_info={"specvlm": [{}]},
        output_ids=[7],
    )


def verify(req: Any, accepted: int, tokens: int) -> None:
    """What SGLang does after a round: note it, then commit its tokens."""
    req.update_spec_correct_drafts_histogram(accepted)
    req.output_ids += [7] * tokens


def test_every_token_of_the_answer_has_its_origin(req: Any) -> None:
    RoundEntries(req, notes_origins=True)
    for accepted in (2, 0, 1):
        verify(req, accepted, accepted + 1)
    entries = req.customized_info["specvlm"]
    assert entries == [{}, DRAFT, DRAFT, TARGET, TARGET, DRAFT, TARGET]
    assert len(entries) == len(req.output_ids)
    assert req.histogram == [2, 0, 1]


def test_a_request_that_is_prefilled_again_notes_each_round_once(req: Any) -> None:
    RoundEntries(req, notes_origins=True)
    verify(req, 1, 2)
    align_entries(req)
    req.customized_info["specvlm"].append({})
    req.output_ids.append(7)
    verify(req, 0, 1)
    assert req.customized_info["specvlm"] == [{}, DRAFT, TARGET, {}, TARGET]
    assert req.histogram == [1, 0]


def test_a_round_that_a_grammar_cut_short_keeps_the_next_ones_aligned(req: Any) -> None:
    RoundEntries(req, notes_origins=True)
    verify(req, 3, 2)
    verify(req, 0, 1)
    assert req.customized_info["specvlm"] == [{}, DRAFT, DRAFT, TARGET]


def test_a_second_report_belongs_to_the_token_of_its_prefill() -> None:
    req = SimpleNamespace(customized_info={"specvlm": [{}]}, output_ids=[7, 7, 7])
    align_entries(req)
    assert req.customized_info["specvlm"] == [{}, None, None]
    # Before its first report a request has no entries.
    align_entries(SimpleNamespace(customized_info=None, output_ids=[]))


@pytest.mark.parametrize("notes_origins", [False, True])
def test_a_later_report_comes_with_the_first_token_of_the_next_round(
    req: Any, notes_origins: bool
) -> None:
    req.customized_info["specvlm"] = [dict(PENDING)]
    rounds = RoundEntries(req, notes_origins=notes_origins)
    rounds.show(BEGUN)
    for accepted in (2, 1):
        verify(req, accepted, accepted + 1)
    entries = req.customized_info["specvlm"]
    if notes_origins:
        assert entries == [PENDING, (DRAFT, BEGUN), DRAFT, TARGET, DRAFT, TARGET]
    else:
        assert entries == [PENDING, (None, BEGUN)]
    assert req.histogram == [2, 1]


def test_a_later_report_is_copied_when_the_rounds_results_are_there(req: Any) -> None:
    rounds = RoundEntries(req, notes_origins=False)
    report = dict(BEGUN)
    rounds.show(report)
    report["cold"] = None
    verify(req, 0, 1)
    report["cold"] = "too late"
    assert req.customized_info["specvlm"][1] == (None, {**BEGUN, "cold": None})


def test_a_response_shows_the_later_report_once_it_is_there() -> None:
    response = ResponseReport()
    assert response.report(is_last=False) is None
    response.add([PENDING])
    assert response.report(is_last=False) == {"policy": "specvlm", "cold": None}
    response.add([(None, BEGUN), None])
    assert response.report(is_last=False) == response.report(is_last=True) == BEGUN


def test_an_answer_that_ends_with_its_first_token_says_that_nothing_was_drafted() -> None:
    response = ResponseReport()
    response.add([PENDING])
    assert response.report(is_last=True) == {"policy": "specvlm", "cold": NO_ROUND}


def test_a_later_report_of_a_detailed_request_counts_as_the_token_that_it_came_with() -> None:
    response = ResponseReport()
    detailed = {**BEGUN, "detail": {"scores": [0.5]}}
    response.add([PENDING, (DRAFT, detailed), TARGET])
    assert response.report(is_last=True) == {
        **BEGUN,
        "detail": {"scores": [0.5], "origins": [TARGET, DRAFT, TARGET]},
    }
