"""What a machine cannot profile is refused before the profiler starts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.io_struct import ProfileReq, ProfileReqOutput, ProfileReqType

from specvlm_sglang.host import profiling
from specvlm_sglang.host.refusals import RefusedError


@pytest.mark.parametrize("activities", [None, ["CPU"], ["CPU", "GPU"]])
def test_cpu_and_gpu_can_be_profiled_everywhere(activities: Any, tmp_path: Path) -> None:
    request = ProfileReq(output_dir=str(tmp_path / "new"), activities=activities)
    assert profiling.why_not(request) is None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"activities": ["FOO"]}, "activities=['FOO']"),
        ({"profile_by_stage": True}, "num_steps"),
        ({"num_steps": -1}, "num_steps=-1"),
        ({"start_step": -1}, "start_step=-1"),
        ({"profile_prefix": "a/b"}, "profile_prefix"),
        ({"profile_id": "../b"}, "profile_id"),
        ({"output_dir": "/dev/null/x"}, "output_dir"),
        ({"output_dir": "\0"}, "output_dir"),
    ],
)
def test_what_would_fail_later_is_refused_by_its_field(fields: dict[str, Any], says: str) -> None:
    assert says in (profiling.why_not(ProfileReq(**fields)) or "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has them")
@pytest.mark.parametrize("activity", ["MEM", "CUDA_PROFILER", "RPD"])
def test_a_gpus_activities_are_refused_without_one(activity: str) -> None:
    reason = profiling.why_not(ProfileReq(activities=["CPU", activity]))
    assert reason == f"activities=['{activity}']: this machine can profile CPU, GPU"


class Manager:
    """SGLang's profiler as far as our check looks."""

    def __init__(self) -> None:
        self.profile_in_progress = False
        self.torch_profiler: object = None
        self.fails = False

    def original(self, request: ProfileReq) -> ProfileReqOutput:
        self.profile_in_progress = request.req_type == ProfileReqType.START_PROFILE
        if self.fails:
            raise OSError("disk full")
        return ProfileReqOutput(success=True, message="")


def test_a_second_start_is_refused_and_a_failed_stop_can_be_followed_by_a_start(
    tmp_path: Path,
) -> None:
    manager = Manager()
    profile = profiling._checked(Manager.original)
    start = ProfileReq(output_dir=str(tmp_path))
    stop = ProfileReq(req_type=ProfileReqType.STOP_PROFILE)
    assert profile(manager, start).success
    assert "call /stop_profile first" in profile(manager, start).message
    manager.fails, manager.profile_in_progress = True, True
    with pytest.raises(OSError, match="disk full"):
        profile(manager, stop)
    assert not manager.profile_in_progress
    manager.fails = False
    assert profile(manager, start).success


def test_a_clients_profile_that_fails_is_a_400() -> None:
    async def fail(self: Any, request: ProfileReq) -> None:
        raise RuntimeError("no such activity")

    with pytest.raises(RefusedError, match="no such activity"):
        asyncio.run(profiling._refused(fail)(SimpleNamespace(), ProfileReq()))
