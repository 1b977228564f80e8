"""The torch score op equals the reference on keys scattered over a pool."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reference.scoring import language_to_video_scores
from specvlm_sglang.scoring.attention_scores import accumulate_layer_scores, mean_scores

# Largest relative difference to the float64 reference. One for every dtype: queries and keys are
# taken to float32, which is exact, before anything is computed with them.
RTOL = 2e-5
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pool_of(keys: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scatter ``[positions, kv_heads, head_dim]`` over a larger pool, NaN everywhere else."""
    length = keys.shape[0]
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randperm(3 * length, generator=generator)[:length]
    pool = torch.full((3 * length, *keys.shape[1:]), torch.nan).to(keys.dtype)
    pool[slots] = keys
    return pool, slots


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
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
    found = mean_scores(total, layers=layers, rows=rows, heads=heads)
    np.testing.assert_allclose(found.numpy(), expected, rtol=RTOL)


@pytest.mark.parametrize("key_block", [1, 5, 16, 30, 31, 4096])
@pytest.mark.parametrize(
    "query_positions", [[29], [0], [0, 29], [12, 13, 14], [28, 3, 17]], ids=str
)
@pytest.mark.parametrize("video_positions", [[0], [29], [2, 3, 13, 14, 15, 28], []], ids=str)
def test_rows_anywhere_see_only_the_video_up_to_themselves(
    video_positions: list[int], query_positions: list[int], key_block: int
) -> None:
    torch.manual_seed(0)
    queries, keys = torch.randn(len(query_positions), 4, 8), torch.randn(30, 2, 8)
    rows = torch.tensor(query_positions)
    video = torch.tensor(video_positions, dtype=torch.int64)
    total = torch.zeros(video.numel())
    pool, slots = pool_of(keys, seed=1)
    accumulate_layer_scores(total, queries, pool, slots, rows, video, 0.3, key_block=key_block)
    expected = language_to_video_scores(
        queries[None].numpy(),
        keys[None].numpy(),
        query_positions=rows.numpy(),
        video_positions=video.numpy(),
        scale=0.3,
    )
    found = mean_scores(total, layers=1, rows=rows.numel(), heads=4)
    np.testing.assert_allclose(found.numpy(), expected, rtol=RTOL)


@pytest.mark.parametrize("key_block", [7, 4096])
def test_logits_far_beyond_the_range_of_exp_stay_finite(key_block: int) -> None:
    torch.manual_seed(0)
    queries, keys = 100 * torch.randn(3, 2, 16), 100 * torch.randn(40, 1, 16)
    total, rows, video = torch.zeros(30), torch.arange(37, 40), torch.arange(2, 32)
    accumulate_layer_scores(
        total, queries, keys, torch.arange(40), rows, video, 1.0, key_block=key_block
    )
    expected = language_to_video_scores(
        queries[None].numpy(),
        keys[None].numpy(),
        query_positions=rows.numpy(),
        video_positions=video.numpy(),
        scale=1.0,
    )
    # Logits near 1e5 are rounded to 1/128, and so are the exponents: hence one loose tolerance.
    np.testing.assert_allclose(total.numpy() / 6, expected, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("key_block", [7, 4096])
def test_quantised_keys_count_as_what_they_stand_for(dtype: torch.dtype, key_block: int) -> None:
    torch.manual_seed(0)
    key_scale = 0.37
    queries, keys = torch.randn(3, 4, 16).bfloat16(), (torch.randn(20, 2, 16) * 3).to(dtype)
    pool, slots = pool_of(keys, seed=2)
    total, rows, video = torch.zeros(7), torch.arange(17, 20), torch.arange(2, 9)
    accumulate_layer_scores(
        total, queries, pool, slots, rows, video, 0.25, key_scale=key_scale, key_block=key_block
    )
    expected = language_to_video_scores(
        queries[None].float().numpy(),
        key_scale * keys[None].float().numpy(),
        query_positions=rows.numpy(),
        video_positions=video.numpy(),
        scale=0.25,
    )
    found = mean_scores(total, layers=1, rows=3, heads=4)
    np.testing.assert_allclose(found.numpy(), expected, rtol=RTOL)


@pytest.mark.parametrize("ranks", [2, 4])
def test_sharded_heads_give_the_scores_of_all_heads_once_reduced(ranks: int) -> None:
    torch.manual_seed(0)
    heads, kv_heads = 8, 4
    queries, keys = torch.randn(3, heads, 16), torch.randn(20, kv_heads, 16)
    arguments = (torch.arange(20), torch.arange(17, 20), torch.arange(2, 9), 0.25)
    whole = torch.zeros(7)
    accumulate_layer_scores(whole, queries, keys, *arguments)
    shards = [torch.zeros(7) for _ in range(ranks)]
    for shard, q, k in zip(shards, queries.chunk(ranks, 1), keys.chunk(ranks, 1), strict=True):
        accumulate_layer_scores(shard, q, k, *arguments)
    expected = mean_scores(whole, layers=1, rows=3, heads=heads)
    for shard in shards:
        others = [other for other in shards if other is not shard]
        found = mean_scores(
            shard,
            layers=1,
            rows=3,
            heads=heads,
            all_reduce=lambda mine, others=others: mine + sum(others),
        )
        torch.testing.assert_close(found, expected, rtol=RTOL, atol=0)


def test_without_rows_every_score_is_zero() -> None:
    total = torch.zeros(2)
    for key_block in (2, 4096):
        accumulate_layer_scores(
            total,
            torch.zeros(0, 2, 8),
            torch.randn(6, 1, 8),
            torch.arange(6),
            torch.zeros(0, dtype=torch.int64),
            torch.tensor([4, 5]),
            0.3,
            key_block=key_block,
        )
    assert mean_scores(total, layers=1, rows=0, heads=2).tolist() == [0.0, 0.0]


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


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"queries": torch.zeros(1, 3, 8)}, "3 heads"),
        ({"key_buffer": torch.zeros(4, 2, 16)}, "head_dim 8"),
        ({"query_positions": torch.tensor([2, 3])}, r"query_positions of shape \[2\]"),
        ({"total": torch.zeros(2)}, "total"),
        ({"total": torch.zeros(1, dtype=torch.float16)}, "total"),
        ({"scale": 0.0}, "scale=0.0"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"key_scale": -1.0}, "key_scale=-1.0"),
        ({"logit_cap": 0.0}, "logit_cap=0.0"),
        ({"key_block": 0}, "key_block=0"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, object], named: str) -> None:
    arguments: dict[str, object] = {
        "total": torch.zeros(1),
        "queries": torch.zeros(1, 2, 8),
        "key_buffer": torch.zeros(4, 2, 8),
        "slots": torch.arange(4),
        "query_positions": torch.tensor([3]),
        "video_positions": torch.tensor([0]),
        "scale": 1.0,
    }
    with pytest.raises(ValueError, match=named):
        accumulate_layer_scores(**{**arguments, **changes})  # type: ignore[arg-type]


def test_a_mean_over_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="rows=-1"):
        mean_scores(torch.zeros(1), layers=1, rows=-1, heads=1)


@pytest.mark.parametrize("key_block", [16, 4096])
def test_no_value_is_read_from_the_device(key_block: int) -> None:
    # Meta tensors have no values: whatever would make the host wait for one raises.
    with torch.device("meta"):
        total = torch.empty(30)
        accumulate_layer_scores(
            total,
            torch.empty(5, 4, 8),
            torch.empty(100, 2, 8),
            torch.empty(60, dtype=torch.int64),
            torch.empty(5, dtype=torch.int64),
            torch.empty(30, dtype=torch.int64),
            0.3,
            logit_cap=5.0,
            key_block=key_block,
        )
        assert mean_scores(total, layers=1, rows=5, heads=4).is_meta


class _LargestTensor(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def largest_tensor(rows: int, length: int, block: int) -> int:
    queries, keys = torch.randn(rows, 4, 16), torch.randn(length, 1, 16)
    slots, query_positions = torch.arange(length), torch.arange(length - rows, length)
    total, video_positions = torch.zeros(length // 2), torch.arange(length // 2)
    with _LargestTensor() as seen:
        accumulate_layer_scores(
            total, queries, keys, slots, query_positions, video_positions, 0.25, key_block=block
        )
    return seen.elements


@pytest.mark.parametrize("rows", [8, 32])
def test_the_largest_tensor_is_one_block_however_long_the_prompt(rows: int) -> None:
    heads, block = 4, 256
    for length in (200, 1024, 8192):
        assert largest_tensor(rows, length, block) == rows * heads * min(length, block)
