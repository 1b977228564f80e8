from __future__ import annotations

import numpy as np
import pytest
import torch

from reference.selection import select_in_stages
from specvlm_sglang.pruning.layout import find_video
from specvlm_sglang.pruning.registry import find_policy
from specvlm_sglang.pruning.selection import Selection, select_in_layout
from specvlm_sglang.report.detail import add_selection, start_detail
from specvlm_sglang.report.observer import RequestReport

PROMPT = find_video(30, [[(2, 13)], [(15, 26)]], 8, [(2, 2, 3), None])


def selected(scores: torch.Tensor, policy: str) -> Selection:
    return select_in_layout(scores, PROMPT, find_policy(policy), 0.5, 0.2)


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
