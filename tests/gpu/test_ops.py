"""Scores and selection on a device equal the reference; the same bodies run on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import reference.selection as reference
from specvlm_sglang.pruning.registry import shipped_policies
from specvlm_sglang.pruning.selection import select_video_tokens
from specvlm_sglang.scoring.attention_scores import accumulate_layer_scores, mean_scores
from tests.support.score_case import ScoreCase
from tests.support.selection_cases import features_of

POLICIES = tuple(shipped_policies())

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Largest relative difference to the float64 reference. A GPU sums in another order and takes
# exponentials with its own instruction; float32 products must not be TF32.
RTOL = {"cpu": 2e-5, "cuda": 2e-4}
HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32


@contextmanager
def no_host_sync(device: str) -> Iterator[None]:
    """Raise where something waits for the GPU; nothing on the CPU."""
    if device == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def scores_on(device: str, case: ScoreCase) -> torch.Tensor:
    """The case's scores through the dispatcher that the server uses."""
    *tensors, scale, cap = case.arguments()
    total, *rest = (tensor.to(device) for tensor in tensors)
    # The first call compiles the kernel, which may wait.
    accumulate_layer_scores(total.clone(), *rest, scale, logit_cap=cap)
    with no_host_sync(device):
        accumulate_layer_scores(total, *rest, scale, logit_cap=cap)
    return mean_scores(total, layers=1, rows=case.rows, heads=case.heads).cpu()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [FULL, HALF, BRAIN], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (28, 4), (40, 2)], ids=str)
def test_scores_equal_the_reference(
    device: str, dtype: torch.dtype, head_dim: int, heads: int, kv_heads: int
) -> None:
    case = ScoreCase(
        length=700, rows=17, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype
    )
    np.testing.assert_allclose(scores_on(device, case).numpy(), case.expected(), rtol=RTOL[device])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("logit_cap", [None, 5.0])
@pytest.mark.parametrize(("length", "rows"), [(1, 1), (64, 1), (2049, 100), (9000, 33)])
def test_short_and_long_prompts_equal_the_reference(
    device: str, logit_cap: float | None, length: int, rows: int
) -> None:
    case = ScoreCase(length=length, rows=rows, dtype=BRAIN, logit_cap=logit_cap)
    np.testing.assert_allclose(scores_on(device, case).numpy(), case.expected(), rtol=RTOL[device])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("key_dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_quantised_keys_equal_the_reference(device: str, key_dtype: torch.dtype) -> None:
    case = ScoreCase(length=700, rows=9, dtype=BRAIN, key_dtype=key_dtype, key_scale=0.37)
    np.testing.assert_allclose(scores_on(device, case).numpy(), case.expected(), rtol=RTOL[device])


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_input_gives_the_same_bits(device: str) -> None:
    case = ScoreCase(length=5000, rows=64, heads=28, kv_heads=4, head_dim=128, dtype=BRAIN)
    assert torch.equal(scores_on(device, case), scores_on(device, case))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("grid", [(1, 1, 1), (7, 8, 13), (32, 8, 8)], ids=str)
def test_a_selection_keeps_what_the_reference_keeps(
    device: str, policy: str, grid: tuple[int, int, int]
) -> None:
    generator = np.random.default_rng(3)
    n = int(np.prod(grid))
    for scores in (generator.gamma(0.1, 1.0, n), generator.integers(0, 4, n), np.zeros(n)):
        ranked = scores.astype(np.float32)
        for retention in (0.05, 0.1, 0.5, 1.0):
            options = {"retention": retention, "policy": policy, "grid": grid, "top_p": 0.2}
            given = torch.from_numpy(ranked).to(device)
            vectors = features_of(n)
            seen = torch.from_numpy(vectors).to(device)
            select_video_tokens(given, features=seen, **options)
            with no_host_sync(device):
                found = select_video_tokens(given, features=seen, **options)
            expected = reference.select_in_stages(ranked, features=vectors, **options)
            assert found.indices.tolist() == expected.indices.tolist()
            assert bool(found.fallback) == bool(expected.fallbacks)
