"""On a GPU the selection never makes the host wait, and counts as the reference counts."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import reference.selection as reference
from specvlm_sglang.pruning import selection, triton_stage_one
from specvlm_sglang.pruning.registry import shipped_policies
from tests.support.selection_cases import features_of
from tests.support.sync_guard import HostSyncError, NoHostSync
from tests.support.triton_interpreter import interpreted

POLICIES = tuple(shipped_policies())

GRID = (4, 7, 5)
N = 140


def skewed(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.1, 1.0, n).astype(np.float32)


@pytest.mark.parametrize(
    "operation",
    [
        lambda t: t.sum().item(),
        lambda t: bool(t.any()),
        lambda t: int(t.argmax()),
        lambda t: t.nonzero(),
        lambda t: torch.where(t > 0),
        lambda t: t[t > 0],
        lambda t: t.masked_select(t > 0),
        lambda t: t.index_put_((t > 0,), torch.zeros(())),
        lambda t: t.unique(),
        lambda t: t.equal(t + 1),
        lambda t: t.repeat_interleave(t.long()),
    ],
)
def test_the_guard_refuses_operations_that_wait(
    operation: Callable[[torch.Tensor], object],
) -> None:
    values = torch.arange(4.0)
    with NoHostSync(), pytest.raises(HostSyncError):
        operation(values)


def test_the_guard_refuses_copies_between_devices_that_block() -> None:
    with FakeTensorMode(), NoHostSync():
        values = torch.empty(4)
        values.to("cuda", non_blocking=True)
        with pytest.raises(HostSyncError):
            values.to("cuda")
        with pytest.raises(HostSyncError):
            torch.empty(4, device="cuda").copy_(values)


@pytest.mark.parametrize("retention", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_keeps_what_the_reference_keeps_without_a_sync(
    policy: str, retention: float
) -> None:
    scores = skewed(N, seed=1)
    options = {"retention": retention, "top_p": 0.4, "policy": policy, "seed": 3}
    vectors = features_of(N)
    on_device = {**options, "features": torch.from_numpy(vectors)}
    with NoHostSync():
        one = selection.select_video_tokens(torch.from_numpy(scores), grid=GRID, **on_device)
        each = selection.select_per_video(
            torch.from_numpy(scores), [105, 35], grids=[(3, 7, 5), (1, 7, 5)], **on_device
        )
    options["features"] = vectors
    expected = reference.select_in_stages(scores, grid=GRID, **options)
    assert one.indices.tolist() == expected.indices.tolist()
    expected = reference.select_per_video(
        scores, [105, 35], grids=[(3, 7, 5), (1, 7, 5)], **options
    )
    assert each.indices.tolist() == expected.indices.tolist()


@pytest.mark.parametrize("policy", POLICIES)
def test_on_a_gpu_no_policy_waits_for_it(policy: str) -> None:
    def count(ranked: torch.Tensor, top_p: float, budget: int) -> torch.Tensor:
        return torch.empty((), dtype=torch.int64, device=ranked.device)

    # Fake tensors know their device and compute nothing: the kernel's launch and the pinning of
    # host memory, which need a real GPU, are left out.
    with (
        mock.patch.object(triton_stage_one, "stage_one_length", count),
        mock.patch.object(torch.Tensor, "pin_memory", lambda host: host),
        FakeTensorMode(allow_non_fake_inputs=True),
        NoHostSync(),
    ):
        scores = torch.empty(N, device="cuda")
        vectors = torch.empty((N, 7), device="cuda")
        found = selection.select_video_tokens(
            scores, retention=0.3, top_p=0.4, policy=policy, grid=GRID, features=vectors
        )
    assert found.indices.device.type == found.stage_one.device.type == "cuda"
    assert found.fallback.device.type == "cuda"
    assert found.indices.shape == ((N if policy == "none" else 42),)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 333])
@pytest.mark.parametrize("top_p", [0.0, 0.4, 0.9, 1.0])
def test_the_kernel_counts_stage_one_as_the_reference(n: int, top_p: float) -> None:
    every_budget = {1, (n + 1) // 2, n}
    kinds = (skewed(n, n), np.ones(n), np.arange(n) % 4, np.zeros(n), np.full(n, 1e-45))
    for scores in kinds:
        ranked = np.sort(scores.astype(np.float32))[::-1].copy()
        for budget in sorted(every_budget):
            found = interpreted(
                "specvlm_sglang.pruning.triton_stage_one:stage_one_length",
                torch.from_numpy(ranked),
                top_p,
                budget,
            )
            assert found.dtype == torch.int64
            assert found.shape == ()
            assert int(found) == reference.retain_top_p(ranked, top_p, budget).size


def test_the_kernel_adds_in_the_order_of_the_reference() -> None:
    # A small score is lost behind a large one, but not beside another small one: added from the
    # right, or in pairs, the mass is larger and one token more is kept.
    ranked = np.array([1.0, *[2.0**-53] * 64], dtype=np.float32)
    found = interpreted(
        "specvlm_sglang.pruning.triton_stage_one:stage_one_length",
        torch.from_numpy(ranked),
        1.0,
        65,
    )
    assert np.sum(ranked[::-1], dtype=np.float64) > 1.0
    assert int(found) == reference.retain_top_p(ranked, 1.0, 65).size == 1
