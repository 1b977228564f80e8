"""Two tensor-parallel ranks on the CPU (gloo) serve the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.serving import plain, specvlm
from tests.serving.plain import EXACT, ask_all, assert_as_transformers
from tests.support import checkpoints

pytestmark = pytest.mark.serving


@pytest.fixture
def draft(checkpoint_dir: Path) -> Path:
    """`vl_draft` has only one head."""
    return checkpoints.draft_of_two_heads(checkpoint_dir)


@pytest.mark.slow
def test_two_ranks_of_specvlm_answer_as_transformers_does(
    serve: Any,
    vl_target: Path,
    draft: Path,
    clip_paths: list[Path],
    image_paths: list[Path],
) -> None:
    cases = specvlm.cases(vl_target, clip_paths, image_paths)
    launch = specvlm.launch(draft, *specvlm.CHAIN, "--tp-size", "2", "--specvlm-audit", "0.5")
    server = serve(vl_target, *launch)
    assert server.server_info()["tp_size"] == 2
    jobs = [
        (case, {"retention": retention, "policy": policy})
        for case in cases
        for retention, policy in ((0.1, "specvlm"), (0.5, "specvlm"), (0.25, "uniform-grid"))
    ]
    for at_once in (1, 8):
        for (case, _), answer in zip(jobs, specvlm.ask_all(server, jobs, at_once), strict=True):
            assert tuple(answer.output_ids) == case.expected
            assert specvlm.report(answer)["cold"] is None
    assert specvlm.state(server)["draft_kv_tokens_in_use"] == 0
    # Replays ran between the requests above, and others gave way to them.
    for case in cases:
        specvlm.settled(server)
        assert tuple(specvlm.ask(server, case).output_ids) == case.expected
    audit = specvlm.settled(server)
    assert 0 < audit["audited"] <= audit["selected"] < 3 * len(jobs)
    assert audit["mismatches"] == 0, audit["last_mismatches"]
    assert set(audit["skipped"]) <= {"queue full", "interrupted too often"}


@pytest.mark.slow
def test_two_ranks_choose_their_steps_alike(
    serve: Any,
    vl_target: Path,
    draft: Path,
    clip_paths: list[Path],
    image_paths: list[Path],
) -> None:
    """Steps follow what rounds cost, which each rank measures otherwise."""
    cases = specvlm.cases(vl_target, clip_paths, image_paths)
    steps = ("--speculative-num-steps", "5", "--speculative-adaptive")
    server = serve(vl_target, *specvlm.launch(draft, *steps, "--tp-size", "2"))
    jobs = [(case, {"retention": retention}) for case in cases for retention in (0.1, 1.0)]
    for at_once in (1, 8, 1, 3):
        for (case, _), answer in zip(jobs, specvlm.ask_all(server, jobs, at_once), strict=True):
            assert tuple(answer.output_ids) == case.expected
    pace = specvlm.state(server)["pace"]
    # A draft with random weights is hardly ever right.
    assert pace["steps"] in (0, 1)
    assert "0" in pace["round_seconds"]
    assert specvlm.state(server)["draft_kv_tokens_in_use"] == 0


@pytest.mark.slow
def test_two_ranks_answer_text_images_and_videos_as_transformers_does(
    serve: Any, vl_target: Path, clip_paths: list[Path], image_paths: list[Path]
) -> None:
    server = serve(vl_target, *EXACT, "--tp-size", "2")
    assert server.server_info()["tp_size"] == 2
    prompts = [
        *plain.text_prompts(),
        *plain.image_prompts(image_paths)[:4],
        *plain.video_prompts(clip_paths, image_paths),
    ]
    assert_as_transformers(vl_target, prompts, ask_all(server, prompts, at_once=1))
    assert_as_transformers(vl_target, prompts, ask_all(server, prompts, at_once=8))
