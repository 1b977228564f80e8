"""How tests are dealt to workers."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.workers import (
    SHARED_SERVERS,
    deal,
    group_of,
    share_cores,
    share_cores_with_torch,
)

SERVING = Path(__file__).parent / "serving"


def item(nodeid: str, *, serving: bool = False) -> Any:
    marker = object() if serving else None
    return SimpleNamespace(nodeid=nodeid, get_closest_marker=lambda name: marker)


def test_modules_that_share_servers_exist_and_start_some() -> None:
    for module in (module for modules in SHARED_SERVERS.values() for module in modules):
        assert "pytest.mark.serving" in (SERVING / f"{module}.py").read_text()


def test_groups_are_modules_but_where_servers_are_shared() -> None:
    assert group_of("tests/serving/test_specvlm.py::test_a[chain]") == "SPECVLM servers"
    assert group_of("tests/serving/test_specvlm_detail.py::test_b") == "SPECVLM servers"
    alone = "tests/serving/test_specvlm_internals.py"
    assert group_of(f"{alone}::test_c[a::b]") == alone
    assert group_of("tests/gpu/test_ops.py::test_d") == group_of("tests/gpu/test_serving.py::e")


def test_groups_with_servers_come_first_and_keep_their_order() -> None:
    items = [
        item("tests/test_a.py::one"),
        item("tests/serving/test_specvlm.py::two", serving=True),
        item("tests/test_b.py::three"),
        item("tests/test_b.py::four", serving=True),
        item("tests/serving/test_specvlm_detail.py::five", serving=True),
        item("tests/test_a.py::six"),
    ]
    deal(items)
    names = [found.nodeid.partition("::")[2] for found in items]
    assert names == ["two", "five", "three", "four", "one", "six"]


@pytest.mark.parametrize(("workers", "share"), [("1", None), ("2", 4), ("16", 1)])
def test_workers_share_the_cores(
    workers: str, share: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    expected = {} if share is None else {"OMP_NUM_THREADS": str(share)}
    assert share_cores({"PYTEST_XDIST_WORKER_COUNT": workers}) == expected


def test_threads_that_the_user_set_stay() -> None:
    environment = {"PYTEST_XDIST_WORKER_COUNT": "2", "OMP_NUM_THREADS": "3"}
    assert share_cores(environment) == {}
    assert share_cores({}) == {}


def test_a_worker_computes_with_its_part_of_the_cores() -> None:
    before, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    environment = {"PYTEST_XDIST_WORKER_COUNT": str(2 * cores)}
    try:
        share_cores_with_torch(environment)
        assert torch.get_num_threads() == 1
        assert environment["OMP_NUM_THREADS"] == "1"
        torch.set_num_threads(before)
        share_cores_with_torch({})
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)
