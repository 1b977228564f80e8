"""Tensor-parallel ranks agree about failures before they meet in a collective again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import multiprocessing

from specvlm_sglang.host import ranks
from specvlm_sglang.host.ranks import agree, agree_on_room, of_first_rank, stop_where_ranks_parted
from specvlm_sglang.tools.server import free_port


def _rank(rank: int, port: int, failing: int | None, folder: str, question: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    group = SimpleNamespace(cpu_group=torch.distributed.group.WORLD, world_size=2, ranks=[0, 1])
    found: Exception | float | None
    if question == "seconds":
        found = of_first_rank(group, 0.1 + rank)
    elif question == "failure":
        found = agree(group, ValueError("mine") if rank == failing else None)
    else:
        mocked = mock.patch.object(
            ranks, "free_bytes", return_value=(1 if rank == failing else 9) << 20
        )
        with mocked:
            found = agree_on_room(group, "cuda", 5 << 20)
    (Path(folder) / str(rank)).write_text(repr(found))
    torch.distributed.destroy_process_group()


def said(failing: int | None, folder: Path, question: str) -> list[str]:
    """What two ranks found, one of them with a trouble of its own."""
    multiprocessing.spawn(_rank, (free_port(), failing, str(folder), question), nprocs=2)
    return [(folder / str(rank)).read_text() for rank in range(2)]


@pytest.mark.parametrize("failing", [None, 0, 1])
def test_a_failure_on_one_rank_is_a_failure_on_both(failing: int | None, tmp_path: Path) -> None:
    found = said(failing, tmp_path, "failure")
    if failing is None:
        assert found == ["None", "None"]
    else:
        assert found[failing] == "ValueError('mine')"
        assert found[1 - failing] == "RuntimeError('another rank could not draft for the prompt')"


@pytest.mark.parametrize("short", [None, 0, 1])
def test_a_pass_begins_on_no_rank_where_one_is_short_of_memory(
    short: int | None, tmp_path: Path
) -> None:
    found = said(short, tmp_path, "room")
    if short is None:
        assert found == ["None", "None"]
    else:
        assert found[short] == "MemoryError('the draft needs about 5 MB for a while, 1 MB free')"
        assert found[1 - short] == "RuntimeError('another rank could not draft for the prompt')"


def test_what_ranks_decide_by_is_what_the_first_measured(tmp_path: Path) -> None:
    assert said(None, tmp_path, "seconds") == ["0.1", "0.1"]
    assert of_first_rank(SimpleNamespace(world_size=1), 0.3) == 0.3


def test_one_rank_and_a_cpu_are_not_asked_for_room() -> None:
    for world, device in ((1, "cuda"), (2, "cpu")):
        assert agree_on_room(SimpleNamespace(world_size=world), device, 1 << 60) is None


def test_free_memory_is_the_drivers_and_what_pytorch_holds_unused() -> None:
    with (
        mock.patch("torch.cuda.mem_get_info", return_value=(100, 900)),
        mock.patch("torch.cuda.memory_reserved", return_value=70),
        mock.patch("torch.cuda.memory_allocated", return_value=50),
    ):
        assert ranks.free_bytes(torch.device("cuda")) == 120


def test_ranks_that_parted_in_a_pass_stop_the_server_where_they_cannot_meet_again() -> None:
    stop_where_ranks_parted("cpu")
    with pytest.raises(RuntimeError, match="--mem-fraction-static"):
        stop_where_ranks_parted("cuda")
