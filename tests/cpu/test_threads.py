"""Ranks share the cores: no NUMA node is needed for each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from sglang.srt.utils import numa_utils

from specvlm_sglang.cpu import threads
from tests.support.hooks import unhooked

TARGET = ("sglang.srt.utils.numa_utils", "init_threads_binding")


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with unhooked(TARGET):
            yield
    finally:
        torch.set_num_threads(before)


def test_sglang_refuses_more_ranks_than_numa_nodes() -> None:
    with pytest.raises(AssertionError, match="numa node"):
        numa_utils.init_threads_binding(numa_index=0, world_size=1000)


@pytest.mark.parametrize(("ranks", "each"), [(1, 4), (2, 2), (3, 1), (1000, 1)])
def test_ranks_divide_the_threads_and_keep_at_least_one(ranks: int, each: int) -> None:
    threads.install()
    numa_utils.init_threads_binding(numa_index=ranks - 1, world_size=ranks)
    assert torch.get_num_threads() == each


def test_a_number_of_threads_that_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads.install()
    numa_utils.init_threads_binding(numa_index=0, world_size=2)
    assert torch.get_num_threads() == 4
