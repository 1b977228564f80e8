from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from reference.selection import select_in_stages
from specvlm_sglang.detail import DRAFT, TARGET, add_selection, align_entries, start_detail
from specvlm_sglang.observability import RequestReport
from specvlm_sglang.pruning.prompt import find_video
from specvlm_sglang.pruning.request import select_for
from specvlm_sglang.request_options import RequestOptions

PROMPT = find_video(30, [[(2, 13)], [(15, 26)]], 8, [(2, 2, 3), None])


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
    start_detail(req, PROMPT)
    for accepted in (2, 0, 1):
        verify(req, accepted, accepted + 1)
    entries = req.customized_info["specvlm"]
    assert entries == [{}, DRAFT, DRAFT, TARGET, TARGET, DRAFT, TARGET]
    assert len(entries) == len(req.output_ids)
    assert req.histogram == [2, 0, 1]


def test_a_request_that_is_prefilled_again_notes_each_round_once(req: Any) -> None:
    start_detail(req, PROMPT)
    verify(req, 1, 2)
    start_detail(req, PROMPT)
    align_entries(req)
    req.customized_info["specvlm"].append({})
    req.output_ids.append(7)
    verify(req, 0, 1)
    assert req.customized_info["specvlm"] == [{}, DRAFT, TARGET, {}, TARGET]
    assert req.histogram == [1, 0]


def test_a_round_that_a_grammar_cut_short_keeps_the_next_ones_aligned(req: Any) -> None:
    start_detail(req, PROMPT)
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


def test_grids_and_lengths_are_those_of_the_prompt(req: Any) -> None:
    detail = start_detail(req, PROMPT)
    assert detail["grids"] == [[2, 2, 3], None]
    assert detail["video_lengths"] == [12, 12]
    assert detail["scores"] is detail["stage_one"] is detail["stage_two"] is None


def test_scores_and_both_stages_are_those_of_the_selection(req: Any) -> None:
    scores = np.random.default_rng(5).random(24, dtype=np.float32) ** 4
    options = RequestOptions(0.5, "specvlm", 0.2)
    detail = start_detail(req, PROMPT)
    add_selection(
        detail, torch.from_numpy(scores), select_for(PROMPT, options, torch.tensor(scores))
    )
    expected = select_in_stages(scores, 0.5, options.top_p)
    assert expected.stage_one.size
    assert expected.stage_two.size
    assert detail["stage_one"] == expected.stage_one.tolist()
    assert detail["stage_two"] == expected.stage_two.tolist()
    assert detail["scores"] == pytest.approx(scores.tolist(), rel=1e-5)


def test_scores_that_no_policy_read_are_not_reported(req: Any) -> None:
    scores = torch.zeros(24)
    detail = start_detail(req, PROMPT)
    add_selection(detail, None, select_for(PROMPT, RequestOptions(0.5, "uniform", 0.2), scores))
    assert detail["scores"] is None
    assert detail["stage_one"] == []
    assert len(detail["stage_two"]) == 12


def test_a_grid_policy_refuses_a_video_without_a_grid() -> None:
    with pytest.raises(ValueError, match="policy 'frames' needs videos with a regular grid"):
        select_for(PROMPT, RequestOptions(0.5, "frames", 0.2), torch.zeros(24))
