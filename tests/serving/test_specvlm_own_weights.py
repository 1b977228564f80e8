"""A draft with the target's own weights: right wherever it sees everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.serving import specvlm
from tests.serving.specvlm import ask, ask_all, launch_beside_plain, meta
from tests.support.server import Server

pytestmark = pytest.mark.serving


@pytest.fixture
def server(serve: Any, vl_target: Path) -> Server:
    found: Server = serve(vl_target, *launch_beside_plain(vl_target))
    return found


@pytest.fixture(scope="module")
def cases(vl_target: Path, clip_paths: list[Path], image_paths: list[Path]) -> list[specvlm.Case]:
    return specvlm.cases(vl_target, clip_paths, image_paths)


def test_a_draft_with_the_targets_weights_that_sees_everything_is_always_accepted(
    server: Server, cases: list[specvlm.Case]
) -> None:
    answers = ask_all(server, [(case, {}) for case in cases * 2], at_once=4)
    for case, answer in zip(cases * 2, answers, strict=True):
        assert tuple(answer.output_ids) == case.expected
        histogram = meta(answer)["spec_correct_drafts_histogram"]
        # The last round may end at the token limit or an end token; no other rejects anything.
        assert sum(histogram[:-1]) <= 1, (case.messages, histogram)


def test_a_pruned_draft_with_the_targets_weights_is_accepted_less_but_often(
    server: Server, cases: list[specvlm.Case]
) -> None:
    videos = [case for case in cases if case.video_tokens]
    rates = {
        retention: [
            meta(ask(server, case, retention=retention))["spec_accept_rate"] for case in videos
        ]
        for retention in (0.05, 1.0)
    }
    assert min(rates[1.0]) > 0.9
    assert 0 < sum(rates[0.05]) < sum(rates[1.0])
