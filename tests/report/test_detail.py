from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from reference.selection import select_in_stages
from specvlm_sglang.pruning.layout import find_video
from specvlm_sglang.pruning.registry import find_policy
from specvlm_sglang.pruning.selection import Selection, select_in_layout
from specvlm_sglang.report.detail import (
    DRAFT,
    TARGET,
    add_selection,
    align_entries,
    note_rounds,
    start_detail,
)
from specvlm_sglang.report.observer import RequestReport

PROMPT = find_video(30, [[(2, 13)], [(15, 26)]], 8, [(2, 2, 3), None])


def selected(scores: torch.Tensor, policy: str) -> Selection:
    return select_in_layout(scores, PROMPT, find_policy(policy), 0.5, 0.2)


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
    note_rounds(req)
    for accepted in (2, 0, 1):
        verify(req, accepted, accepted + 1)
    entries = req.customized_info["specvlm"]
    assert entries == [{}, DRAFT, DRAFT, TARGET, TARGET, DRAFT, TARGET]
    assert len(entries) == len(req.output_ids)
    assert req.histogram == [2, 0, 1]


def test_a_request_that_is_prefilled_again_notes_each_round_once(req: Any) -> None:
    note_rounds(req)
    verify(req, 1, 2)
    align_entries(req)
    req.customized_info["specvlm"].append({})
    req.output_ids.append(7)
    verify(req, 0, 1)
    assert req.customized_info["specvlm"] == [{}, DRAFT, TARGET, {}, TARGET]
    assert req.histogram == [1, 0]


def test_a_round_that_a_grammar_cut_short_keeps_the_next_ones_aligned(req: Any) -> None:
    note_rounds(req)
    verify(req, 3, 2)
    verify(req, 0, 1)
    assert req.customized_info["specvlm"] == [{}, DRAFT, DRAFT, TARGET]


def test_a_second_report_belongs_to_the_token_of_its_prefill() -> None:
    req = SimpleNamespace(customized_info={"specvlm": [{}]}, output_ids=[7, 7, 7])
    align_entries(req)
    assert req.customized_info["specvlm"] == [{}, None, None]
    # Before its first report a request has no entries.
    align_entries(SimpleNamespace(customized_info=None, output_ids=[]))


def test_a_report_without_detail_has_no_such_field() -> None:
    assert "detail" not in RequestReport(24, 12, "specvlm").as_dict()


def test_grids_and_lengths_are_those_of_the_prompt() -> None:
    detail = start_detail(PROMPT)
    assert detail["grids"] == [[2, 2, 3], None]
    assert detail["video_lengths"] == [12, 12]
    assert detail["scores"] is detail["stage_one"] is detail["stage_two"] is None


def test_scores_and_both_stages_are_those_of_the_selection() -> None:
    scores = np.random.default_rng(5).random(24, dtype=np.float32) ** 4
    detail = start_detail(PROMPT)
    add_selection(detail, torch.from_numpy(scores), selected(torch.tensor(scores), "specvlm"))
    expected = select_in_stages(scores, 0.5, 0.2)
    assert expected.stage_one.size
    assert expected.stage_two.size
    assert detail["stage_one"] == expected.stage_one.tolist()
    assert detail["stage_two"] == expected.stage_two.tolist()
    assert detail["scores"] == pytest.approx(scores.tolist(), rel=1e-5)


def test_scores_that_no_policy_read_are_not_reported() -> None:
    scores = torch.zeros(24)
    detail = start_detail(PROMPT)
    add_selection(detail, None, selected(scores, "uniform"))
    assert detail["scores"] is None
    assert detail["stage_one"] == []
    assert len(detail["stage_two"]) == 12


def test_a_grid_policy_refuses_a_video_without_a_grid() -> None:
    with pytest.raises(ValueError, match="policy 'frames' needs videos with a regular grid"):
        selected(torch.zeros(24), "frames")
