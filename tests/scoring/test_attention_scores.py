"""The torch score op equals the reference on keys scattered over a pool."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reference.scoring import language_to_video_scores
from specvlm_sglang.scoring.attention_scores import accumulate_layer_scores

# Largest relative difference to float64 accumulation, by the dtype of queries and keys.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-5, torch.float16: 2e-5}


def pool_of(keys: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scatter ``[positions, kv_heads, head_dim]`` over a larger pool."""
    length = keys.shape[0]
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randperm(3 * length, generator=generator)[:length]
    pool = torch.full((3 * length, *keys.shape[1:]), 7.0, dtype=keys.dtype)
    pool[slots] = keys
    return pool, slots


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (7, 1)])
@pytest.mark.parametrize("head_dim", [16, 80])
@pytest.mark.parametrize("logit_cap", [None, 5.0])
@pytest.mark.parametrize("key_block", [1, 7, 64, 4096])
def test_scores_equal_the_reference(
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    head_dim: int,
    logit_cap: float | None,
    key_block: int,
) -> None:
    layers, length, rows = 2, 61, 5
    torch.manual_seed(heads * head_dim)
    queries = (2 * torch.randn(layers, rows, heads, head_dim)).to(dtype)
    keys = torch.randn(layers, length, kv_heads, head_dim).to(dtype)
    query_positions = torch.arange(length - rows, length)
    video_positions = torch.tensor([3, 4, 5, 9, 20, 21, 40])
    scale = head_dim**-0.5
    total = torch.zeros(video_positions.numel())
    for layer in range(layers):
        pool, slots = pool_of(keys[layer], seed=layer)
        accumulate_layer_scores(
            total,
            queries[layer],
            pool,
            slots,
            query_positions,
            video_positions,
            scale,
            logit_cap=logit_cap,
            key_block=key_block,
        )
    expected = language_to_video_scores(
        queries.float().numpy(),
        keys.float().numpy(),
        query_positions=query_positions.numpy(),
        video_positions=video_positions.numpy(),
        scale=scale,
        logit_cap=logit_cap,
    )
    found = (total / (layers * rows * heads)).numpy()
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE[dtype])


def test_a_key_scale_multiplies_the_stored_keys() -> None:
    queries, keys = torch.randn(3, 2, 16), torch.randn(20, 2, 16)
    arguments = (torch.arange(20), torch.arange(17, 20), torch.arange(2, 9), 0.25)
    plain, scaled = torch.zeros(7), torch.zeros(7)
    accumulate_layer_scores(plain, queries, keys, *arguments)
    accumulate_layer_scores(scaled, queries, keys / 4, *arguments, key_scale=4.0)
    torch.testing.assert_close(plain, scaled)


def test_rows_do_not_see_later_keys() -> None:
    queries, keys = torch.randn(1, 1, 16), torch.randn(10, 1, 16)
    before, after = torch.zeros(3), torch.zeros(3)
    for total, tail in ((before, 0.0), (after, 50.0)):
        keys[6:] = tail
        accumulate_layer_scores(
            total, queries, keys, torch.arange(10), torch.tensor([5]), torch.arange(3), 1.0
        )
    torch.testing.assert_close(before, after)


def test_heads_that_cannot_be_grouped_are_named() -> None:
    with pytest.raises(ValueError, match="3 heads"):
        accumulate_layer_scores(
            torch.zeros(1),
            torch.zeros(1, 3, 8),
            torch.zeros(4, 2, 8),
            torch.arange(4),
            torch.tensor([3]),
            torch.tensor([0]),
            1.0,
        )


class _LargestTensor(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_memory_grows_with_rows_or_with_keys_but_not_with_their_product() -> None:
    rows, heads, block = 8, 4, 256

    def largest(length: int) -> int:
        queries, keys = torch.randn(rows, heads, 16), torch.randn(length, 1, 16)
        with _LargestTensor() as seen:
            accumulate_layer_scores(
                torch.zeros(length // 2),
                queries,
                keys,
                torch.arange(length),
                torch.arange(length - rows, length),
                torch.arange(length // 2),
                0.25,
                key_block=block,
            )
        return seen.elements

    assert largest(1024) == largest(8192) == rows * heads * block
