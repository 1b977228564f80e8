"""Tensor-parallel ranks agree about failures, so that none waits for another in a collective.

What fails for a reason in the request fails on all ranks in the same place. Memory is each rank's
own: it is asked for before a pass with collectives, and where a rank fails in the middle of one all
the same, the others' kernels wait for a partner that never comes, or meet the wrong one.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch

PATIENCE_SECONDS = 60.0
"""How long a rank that failed waits for the others, which may wait for it in a collective."""
PARTED = (
    "SPECVLM: one tensor-parallel rank failed in the draft's pass and another did not; the server "
    "cannot go on. Give it more free memory: a lower --mem-fraction-static"
)
OTHER_RANK = "another rank could not draft for the prompt"
"""Why a request is cold that this rank had a draft for."""


def agree(group: Any, failure: Exception | None) -> Exception | None:
    """Tell every rank whether any of them failed; call it on all.

    Parameters
    ----------
    group
        SGLang's ``GroupCoordinator`` of the ranks. They meet on the host: no GPU is waited for.
    failure
        What went wrong on this rank.

    Returns
    -------
    Exception or None
        ``failure``, or an error where another rank had one.
    """
    failed = agree_on_all(group, torch.tensor([failure is not None]))
    if failure is None and failed.item():
        return RuntimeError(OTHER_RANK)
    return failure


def lost_anywhere(group: Any, size: int, everyone: set[int], mine: set[int]) -> set[int]:
    """What some rank of ``group`` does not have, of ``everyone`` in a batch of ``size``.

    Parameters
    ----------
    group
        SGLang's ``GroupCoordinator``; all its ranks call this.
    size
        Requests of the batch.
    everyone
        Places in the batch that are asked about; the same on every rank.
    mine
        Those that this rank has.
    """
    if group.world_size == 1:
        return everyone - mine
    missing = torch.tensor([place in everyone - mine for place in range(size)], dtype=torch.bool)
    return set(agree_on_all(group, missing).nonzero().flatten().tolist())


def agree_on_room(group: Any, device: torch.device | str, needed: int) -> Exception | None:
    """An error on every rank where one of them has not ``needed`` bytes of its device left.

    Parameters
    ----------
    group
        SGLang's ``GroupCoordinator``; all its ranks call this.
    device
        This rank's. A CPU's memory is shared and pages: it is not asked.
    needed
        Bytes that a pass is estimated to take for a while.
    """
    device = torch.device(device)
    if group.world_size == 1 or device.type != "cuda":
        return None
    short = None
    free = free_bytes(device)
    if free < needed:
        short = MemoryError(
            f"the draft needs about {needed >> 20} MB for a while, {free >> 20} MB free"
        )
    return agree(group, short)


def free_bytes(device: torch.device) -> int:
    """Bytes that PyTorch can hand out on a CUDA device: the driver's, and those that it holds."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def stop_where_ranks_parted(device: torch.device | str) -> None:
    """Another rank failed where this one did not, in a pass with collectives.

    Raises
    ------
    RuntimeError
        On CUDA, where such a pass returns before its collectives have met: going on would hang, or
        answer with garbage. On a CPU both ranks are still together.
    """
    if torch.device(device).type == "cuda":
        raise RuntimeError(PARTED)


class Meeting:
    """Where ranks come that failed in a round, to learn whether all of them did.

    A rank that did not fail never comes, so a round without failures costs nothing.

    Parameters
    ----------
    group
        SGLang's ``GroupCoordinator``; all its ranks make this, in the same place.
    device
        This rank's.
    """

    def __init__(self, group: Any, device: torch.device | str) -> None:
        self._is_alone = group.world_size == 1
        self._group: Any = None
        if not self._is_alone and torch.device(device).type != "cuda":
            # Of its own: a rank that did not fail may wait in the others for the one that did.
            self._group = torch.distributed.new_group(group.ranks, backend="gloo")

    def all_failed(self) -> bool:
        """Whether every rank failed in this round's pass; called by those that did.

        False on CUDA with several ranks: they may have failed in different layers, and the
        collectives that one of them has queued more would meet the next pass's of another. On a
        CPU no rank is ahead of a collective that another has not reached.
        """
        if self._is_alone:
            return True
        if self._group is None:
            return False
        return _came(self._group, torch.ones(1))


def of_first_rank(group: Any, seconds: float) -> float:
    """The first rank's ``seconds`` on every rank: each measures others, all must decide alike.

    Parameters
    ----------
    group
        SGLang's ``GroupCoordinator``; all its ranks call this. They meet on the host.
    seconds
        What this rank measured.
    """
    if group.world_size == 1:
        return seconds
    found = torch.tensor([seconds], dtype=torch.float64)
    torch.distributed.broadcast(found, group.ranks[0], group=group.cpu_group)
    return float(found.item())


def agree_on_all(group: Any, flags: torch.Tensor) -> torch.Tensor:
    """Where the flag of any rank is set; bool ``[N]`` on the host, as ``flags``.

    Raises
    ------
    RuntimeError
        A flag is set on this rank, and another rank has not come in `PATIENCE_SECONDS`: it waits
        for this one in a pass.
    """
    found = flags.to(torch.int32)
    if not flags.any():
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=group.cpu_group)
    elif not _came(group.cpu_group, found):
        raise RuntimeError(PARTED)
    return found.bool()


def _came(group: Any, values: torch.Tensor) -> bool:
    """Take the largest ``values`` of all ranks; False where one of them did not come.

    Nor does a rank wait longer than `PATIENCE_SECONDS`. ``monitored_barrier`` keeps its timeout on
    rank 0 alone.
    """
    work = torch.distributed.all_reduce(
        values, torch.distributed.ReduceOp.MAX, group=group, async_op=True
    )
    try:
        work.wait(timedelta(seconds=PATIENCE_SECONDS))
    except RuntimeError:
        return False
    return True
