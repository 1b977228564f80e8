"""Faults at our seams, chosen request by request in one server (`tests.support.faults`).

Whatever fails on the draft's side costs a request its draft, or those that share the pass: answers
stay right, no slot is lost, the server goes on and says what happened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from specvlm_sglang.tools import client
from tests.serving import specvlm
from tests.serving.specvlm import CHAIN, TREE, Case, ask, ask_all, launch, meta, report, state
from tests.support import checkpoints, probe
from tests.support.faults import FAULTS, rid_of
from tests.support.server import Server

pytestmark = [pytest.mark.serving, pytest.mark.slow]

RETENTION = 0.3


TWO_RANKS = (*CHAIN, "--tp-size", "2")
"""Each of them meets every fault."""


@pytest.fixture(scope="module", params=[CHAIN, TREE, TWO_RANKS], ids=["chain", "tree", "two ranks"])
def server(
    request: Any,
    serve: Any,
    vl_target: Path,
    vl_draft: Path,
    checkpoint_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Server:
    environment = probe.install(tmp_path_factory.mktemp("faults"))
    ranks = request.param == TWO_RANKS
    draft = checkpoints.draft_of_two_heads(checkpoint_dir) if ranks else vl_draft
    arguments = launch(draft, *request.param, "--chunked-prefill-size", "16")
    started: Server = serve(vl_target, *arguments, **environment)
    return started


@pytest.fixture(scope="module")
def cases(vl_target: Path, clip_paths: list[Path], image_paths: list[Path]) -> list[Case]:
    every = specvlm.cases(vl_target, clip_paths, image_paths)
    return [case for case in every if case.video_tokens]


def assert_right(case: Case, answer: Any) -> None:
    assert tuple(answer.output_ids) == case.expected


def assert_idle_and_well(server: Server, case: Case) -> None:
    """No slot is held, and the next request has a draft."""
    assert state(server)["draft_kv_tokens_in_use"] == 0
    answer = ask(server, case, retention=RETENTION)
    assert_right(case, answer)
    assert report(answer)["cold"] is None


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_its_request_its_draft_at_most(
    server: Server, cases: list[Case], name: str
) -> None:
    shows, before = FAULTS[name].shows, state(server)
    case = cases[0]
    answer = ask(server, case, retention=RETENTION, rid=rid_of(name))
    assert_right(case, answer)
    after = state(server)
    if shows == "no report":
        assert "specvlm" not in meta(answer)
    elif shows == "cold":
        assert report(answer)["cold"]
        assert after["cold_at_prefill"] == before["cold_at_prefill"] + 1
    else:
        assert report(answer)["cold"] is None
        assert after["cold_at_prefill"] == before["cold_at_prefill"]
        assert (report(answer)["fallback"] is not None) == (shows == "fallback")
        assert after["went_cold"] - before["went_cold"] == (shows == "lost")
    assert_idle_and_well(server, case)


def test_all_faults_at_once_beside_requests_without(server: Server, cases: list[Case]) -> None:
    names = [name for name in FAULTS for _ in range(2)]
    jobs: list[tuple[Case, dict[str, Any]]] = []
    for place, name in enumerate(names):
        case = cases[place % len(cases)]
        jobs += [(case, {"retention": RETENTION, "rid": rid_of(name)})]
        jobs += [(cases[(place + 1) % len(cases)], {"retention": RETENTION})]
    for (case, _), answer in zip(jobs, ask_all(server, jobs, at_once=8), strict=True):
        assert_right(case, answer)
    assert client.get_json(server.url, "/v1/loads")["loads"][0]["num_running_reqs"] == 0
    assert_idle_and_well(server, cases[0])
