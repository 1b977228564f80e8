"""The detail that a request can ask for, from a real server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from reference.selection import select_in_stages
from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.tools.cli import main
from tests.serving.specvlm import (
    CHAIN,
    NEW_TOKENS,
    OWN_POLICY,
    assert_reports_of,
    chat_prompt,
    launch,
    meta,
    report,
    state,
    stream_through_a_preemption,
)
from tests.support.messages import user
from tests.support.server import ChatAnswer, Server

pytestmark = pytest.mark.serving


@pytest.fixture
def server(serve: Any, vl_target: Path, vl_draft: Path) -> Server:
    found: Server = serve(vl_target, *launch(vl_draft, *CHAIN))
    return found


def ask(server: Server, *parts: Any, **chosen: Any) -> ChatAnswer:
    return server.chat(
        user(*parts),
        max_tokens=NEW_TOKENS,
        return_meta_info=True,
        custom_params={"specvlm": chosen},
    )


def test_the_detail_explains_the_selection_and_every_verify_round(
    server: Server, clip_paths: list[Path]
) -> None:
    answer = ask(server, clip_paths[0], "What happens?", retention=0.5, detail=True)
    detail = report(answer)["detail"]
    (grid,) = detail["grids"]
    assert len(detail["scores"]) == report(answer)["video_tokens"] == grid[0] * grid[1] * grid[2]
    expected = select_in_stages(detail["scores"], 0.5, SpecVLMConfig.top_p)
    assert detail["stage_one"] == expected.stage_one.tolist()
    assert detail["stage_two"] == expected.stage_two.tolist()
    first, *origins = detail["origins"]
    assert first == "target"
    assert len(origins) == len(answer.output_ids) - 1
    histogram = meta(answer)["spec_correct_drafts_histogram"]
    # The last round may reach beyond the answer's end.
    drafts = sum(accepted * rounds for accepted, rounds in enumerate(histogram))
    assert 0 <= drafts - origins.count("draft") < len(histogram)
    assert origins.count("target") in (sum(histogram) - 1, sum(histogram))


def test_two_videos_are_told_apart(server: Server, clip_paths: list[Path]) -> None:
    first, second, *_ = clip_paths
    answer = ask(server, first, second, "Compare.", policy="uniform", retention=0.25, detail=True)
    detail = report(answer)["detail"]
    assert len(detail["grids"]) == len(detail["video_lengths"]) == 2
    assert sum(detail["video_lengths"]) == report(answer)["video_tokens"]
    assert detail["scores"] is None
    assert len(detail["stage_two"]) == report(answer)["kept_video_tokens"]


@pytest.mark.parametrize("detail", [False, True], ids=["report", "with detail"])
def test_every_chunk_of_a_stream_has_the_report_and_after_a_preemption_the_second_one(
    server: Server, clip_paths: list[Path], detail: bool
) -> None:
    prompt = chat_prompt("What happens?", video=True)
    chunks = stream_through_a_preemption(
        server, prompt, clip_paths[0], retention=0.5, detail=detail
    )
    lengths = [len(chunk["output_ids"]) for chunk in chunks]
    assert_reports_of(chunks, lengths, detail=detail)


def test_each_answer_of_a_batch_has_a_report_of_its_own(server: Server) -> None:
    options = [{"detail": True}, {"policy": "uniform"}]
    body = {
        "text": [chat_prompt("What happens?"), chat_prompt("Is it red?")],
        "sampling_params": [
            {"max_new_tokens": 9, "custom_params": {"specvlm": chosen}} for chosen in options
        ],
    }
    response = requests.post(f"{server.url}/generate", json=body, timeout=300)
    first, second = (answer["meta_info"]["specvlm"] for answer in response.json())
    assert len(first["detail"]["origins"]) == 9
    assert "detail" not in second
    assert (first["policy"], second["policy"]) == ("specvlm", "uniform")


def test_a_request_that_asks_for_no_detail_gets_none(
    server: Server, clip_paths: list[Path]
) -> None:
    answer = ask(server, clip_paths[0], "What happens?", retention=0.5)
    assert "detail" not in report(answer)


def test_a_detail_that_is_no_boolean_is_refused(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="detail='yes' must be true or false"):
        ask(server, "Hello", detail="yes")


def test_scoring_time_is_counted_once(server: Server, clip_paths: list[Path]) -> None:
    before = state(server)["phases"]["scoring"]
    ask(server, clip_paths[0], "What happens?", retention=0.5)
    after = state(server)["phases"]["scoring"]
    assert after["calls"] == before["calls"] + 1
    assert after["seconds"] > before["seconds"]
    assert "scoring_seconds" not in state(server)


def visualize(video: Path, out: Path, *more: str) -> int:
    return main(["visualize", str(video), "What happens?", "--out", str(out), *more])


@pytest.mark.parametrize("policy", ["specvlm", OWN_POLICY])
def test_a_running_servers_answer_becomes_a_page(
    server: Server, clip_paths: list[Path], tmp_path: Path, policy: str
) -> None:
    out = tmp_path / "pages" / "page.html"
    url = ("--url", f"{server.url}/")
    assert visualize(clip_paths[0], out, *url, "--policy", policy, "--retention", "0.5") == 0
    found = re.search(r'id="data">(.*?)</script>', out.read_text(), re.DOTALL)
    assert found
    data = json.loads(found.group(1))
    answer = ask(server, clip_paths[0], "What happens?", retention=0.5, policy=policy, detail=True)
    detail = report(answer)["detail"]
    assert (data["question"], data["policy"], data["retention"]) == ("What happens?", policy, 0.5)
    assert (data["grid"], data["scores"]) == (detail["grids"][0], detail["scores"])
    if policy == OWN_POLICY:
        served = {"stageOne": detail["stage_one"], "stageTwo": detail["stage_two"]}
        assert data["served"] == served
    else:
        assert data["served"] is None
    assert data["rounds"][0]["drafted"] == []


def test_a_policy_that_the_server_does_not_know_is_its_message(
    server: Server, clip_paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert visualize(clip_paths[0], tmp_path / "x", "--url", server.url, "--policy", "none-such")
    assert "policy='none-such' must be one of" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_line(
    clip_paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert visualize(clip_paths[0], tmp_path / "x", "--url", "http://127.0.0.1:9") == 1
    assert re.fullmatch(r"specvlm visualize: [^\n]+\n", capsys.readouterr().err)
