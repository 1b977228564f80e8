"""Tensor-parallel ranks agree about failures before they meet in a collective again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import multiprocessing

from specvlm_sglang.host import ranks
from specvlm_sglang.host.ranks import (
    PARTED,
    Meeting,
    agree,
    agree_on_room,
    of_first_rank,
    stop_where_ranks_parted,
)
from specvlm_sglang.tools.server import free_port


def _rank(
    rank: int, port: int, failing: int | None, folder: str, question: str, patience: float
) -> None:
    ranks.PATIENCE_SECONDS = patience
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    world = torch.distributed.group.WORLD
    group = SimpleNamespace(cpu_group=world, world_size=2, ranks=[0, 1])
    # What the collectives of a pass go through: not the group in which ranks agree.
    device_group = torch.distributed.new_group([0, 1], backend="gloo")
    found: Any
    if question == "meeting":
        meeting = Meeting(group, "cpu")
        found = meeting.all_failed() if failing in (None, rank) else "in its pass"
        torch.distributed.barrier(device_group)
        if failing not in (None, rank):
            meeting.all_failed()  # Lets the other's question end with the test.
    elif question == "within a pass":
        found = "in its pass"
        if rank == failing:
            try:
                agree(group, ValueError("mine"))
            except RuntimeError as error:
                found = error
        torch.distributed.barrier(device_group)
        if rank != failing:
            agree(group, None)  # As above.
    elif question == "seconds":
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


def said(
    failing: int | None, folder: Path, question: str, patience: float = ranks.PATIENCE_SECONDS
) -> list[str]:
    """What two ranks found, one of them with a trouble of its own."""
    arguments = (free_port(), failing, str(folder), question, patience)
    multiprocessing.spawn(_rank, arguments, nprocs=2)
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


@pytest.mark.parametrize("failing", [None, 0, 1])
def test_ranks_that_all_failed_meet_and_one_alone_waits_in_vain(
    failing: int | None, tmp_path: Path
) -> None:
    found = said(failing, tmp_path, "meeting", patience=30.0 if failing is None else 1.0)
    if failing is None:
        assert found == ["True", "True"]
    else:
        assert found[failing] == "False"
        assert found[1 - failing] == "'in its pass'"


def test_a_rank_that_failed_while_another_waits_for_it_in_a_pass_says_so(tmp_path: Path) -> None:
    found = said(1, tmp_path, "within a pass", patience=1.0)
    assert found == ["'in its pass'", repr(RuntimeError(PARTED))]


def test_one_rank_fails_alone_and_those_of_a_gpu_cannot_tell() -> None:
    assert Meeting(SimpleNamespace(world_size=1), "cpu").all_failed()
    assert Meeting(SimpleNamespace(world_size=1), "cuda").all_failed()
    assert not Meeting(SimpleNamespace(world_size=2, ranks=[0, 1]), "cuda").all_failed()
