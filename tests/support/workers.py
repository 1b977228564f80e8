"""How the tests are dealt to pytest-xdist's workers: what shares servers stays together."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

import pytest
import torch
from xdist.scheduler.loadscope import LoadScopeScheduling

SHARED_SERVERS = {
    "plain servers": ("test_broken_inputs", "test_plain_serving"),
    "SPECVLM servers": (
        "test_batch",
        "test_fuzz",
        "test_isolation",
        "test_scrape",
        "test_soak",
        "test_specvlm",
        "test_specvlm_detail",
        "test_specvlm_examples",
        "test_specvlm_sampling",
        "test_video_requests",
        "test_what_kills_a_server",
    ),
    "servers that answer beside one another": (
        "test_specvlm_own_weights",
        "test_specvlm_prefill_only",
        "test_specvlm_reports",
        "test_specvlm_sessions",
    ),
}
"""Modules of tests/serving that ask for the same servers; the others keep to themselves."""

_GROUPS = {
    f"tests/serving/{module}.py": group
    for group, modules in SHARED_SERVERS.items()
    for module in modules
}


def group_of(nodeid: str) -> str:
    """What one worker runs as a whole: a test's module, or all that share its servers."""
    module = nodeid.partition("::")[0]
    if module.startswith("tests/gpu/") and not module.endswith("test_plan.py"):
        return "gpu"  # All memory of the one device goes to one server at a time.
    return _GROUPS.get(module, module)


class Groups(LoadScopeScheduling):  # type: ignore[misc]
    """Deals whole groups, in the order of `deal`."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def deal(items: list[pytest.Item]) -> None:
    """Sort by group, those with servers first.

    They take minutes each; the quick ones then even out when the workers end.
    """
    served: dict[str, bool] = {}
    for item in items:
        group = group_of(item.nodeid)
        served[group] = served.get(group, False) or item.get_closest_marker("serving") is not None
    order = {group: place for place, group in enumerate(served)}
    items.sort(key=lambda item: (not served[g := group_of(item.nodeid)], order[g]))


def share_cores(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that give a worker's processes its part of the cores; none without workers.

    Two servers of two threads each on two cores wait for one another at every barrier.
    """
    workers = int(environment.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers == 1 or "OMP_NUM_THREADS" in environment:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // workers))}


def share_cores_with_torch(environment: MutableMapping[str, str]) -> None:
    """Set these variables, and this process's threads: torch read them when it was imported."""
    variables = share_cores(environment)
    environment.update(variables)
    if variables:
        torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
