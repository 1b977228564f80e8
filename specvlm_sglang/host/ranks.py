"""Tensor-parallel ranks agree about failures, so that none waits for another in a collective."""

from __future__ import annotations

from typing import Any

import torch

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


def agree_on_all(group: Any, flags: torch.Tensor) -> torch.Tensor:
    """Where the flag of any rank is set; bool ``[N]`` on the host, as ``flags``."""
    found = flags.to(torch.int32)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=group.cpu_group)
    return found.bool()
