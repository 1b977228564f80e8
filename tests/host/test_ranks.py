"""Tensor-parallel ranks agree about failures before they meet in a collective again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import multiprocessing

from specvlm_sglang.host.ranks import agree
from specvlm_sglang.tools.server import free_port


def _rank(rank: int, port: int, failing: int | None, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    group = SimpleNamespace(cpu_group=torch.distributed.group.WORLD)
    own = ValueError("mine") if rank == failing else None
    found = agree(group, own)
    (Path(folder) / str(rank)).write_text(repr(found))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("failing", [None, 0, 1])
def test_a_failure_on_one_rank_is_a_failure_on_both(failing: int | None, tmp_path: Path) -> None:
    multiprocessing.spawn(_rank, (free_port(), failing, str(tmp_path)), nprocs=2)
    said = [(tmp_path / str(rank)).read_text() for rank in range(2)]
    if failing is None:
        assert said == ["None", "None"]
    else:
        assert said[failing] == "ValueError('mine')"
        assert said[1 - failing] == "RuntimeError('another rank could not draft for the prompt')"
