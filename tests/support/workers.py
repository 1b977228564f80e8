"""How the tests are dealt to pytest-xdist's workers: what shares servers stays together."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest


def deal(items: list[pytest.Item]) -> None:
    """Mark every test with the group that one worker runs, and put groups with servers first.

    A group is a test's module, or what its ``xdist_group`` marker names: modules that ask for the
    same servers name the same. Groups with servers take minutes each; the quick ones then even
    out when the workers end. Within a group, and without workers, the order stays.
    """
    served: dict[str, bool] = {}
    names: dict[pytest.Item, str] = {}
    for item in items:
        marker = item.get_closest_marker("xdist_group")
        if item.get_closest_marker("gpu"):
            name = "gpu"  # All memory of the one device goes to one server at a time.
        else:
            name = marker.args[0] if marker else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(name), append=False)
        names[item] = name
        served[name] = served.get(name, False) or item.get_closest_marker("serving") is not None
    order = {name: place for place, name in enumerate(served)}
    items.sort(key=lambda item: (not served[names[item]], order[names[item]]))


def share_cores(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that give a worker's processes its part of the cores; none without workers.

    Two servers of two threads each on two cores wait for one another at every barrier.
    """
    workers = int(environment.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers == 1 or "OMP_NUM_THREADS" in environment:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // workers))}
