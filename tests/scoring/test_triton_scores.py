"""The Triton scores in Triton's interpreter equal the reference and the torch version."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from specvlm_sglang.scoring import torch_scores, triton_scores
from specvlm_sglang.scoring.attention_scores import accumulate_layer_scores, mean_scores
from tests.support.score_case import ScoreCase
from tests.support.triton_interpreter import interpreted

KERNELS = "specvlm_sglang.scoring.triton_scores:add_layer_scores"
# Largest relative difference to the float64 reference, one for every dtype: products of 16-bit
# operands are exact in float32, in which they are added.
RTOL = 2e-5
SPLIT = triton_scores.KEYS_PER_SPLIT
HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def scores_of(case: ScoreCase, arguments: tuple[Any, ...] | None = None) -> np.ndarray:
    arguments = case.arguments() if arguments is None else arguments
    interpreted(KERNELS, *arguments)
    return mean_scores(arguments[0], layers=1, rows=case.rows, heads=case.heads).numpy()


def assert_equals_the_reference(case: ScoreCase) -> None:
    np.testing.assert_allclose(scores_of(case), case.expected(), rtol=RTOL)


@pytest.mark.parametrize(("dtype", "key_dtype"), [(FULL, FULL), (HALF, HALF), (BRAIN, BRAIN)])
@pytest.mark.parametrize("head_dim", [8, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("logit_cap", [None, 5.0, 50.0])
def test_every_head_dim_and_dtype_equals_the_reference(
    head_dim: int, dtype: torch.dtype, key_dtype: torch.dtype, logit_cap: float | None
) -> None:
    assert_equals_the_reference(
        ScoreCase(head_dim=head_dim, dtype=dtype, key_dtype=key_dtype, logit_cap=logit_cap)
    )


@pytest.mark.parametrize("key_dtype", [E4M3, E5M2], ids=str)
@pytest.mark.parametrize("dtype", [HALF, BRAIN, FULL], ids=str)
def test_quantised_keys_count_as_what_they_stand_for(
    dtype: torch.dtype, key_dtype: torch.dtype
) -> None:
    assert_equals_the_reference(ScoreCase(dtype=dtype, key_dtype=key_dtype, key_scale=0.37))


@pytest.mark.parametrize(("dtype", "key_dtype"), [(BRAIN, HALF), (HALF, FULL), (FULL, BRAIN)])
def test_queries_and_keys_of_different_dtypes_lose_nothing(
    dtype: torch.dtype, key_dtype: torch.dtype
) -> None:
    assert_equals_the_reference(ScoreCase(dtype=dtype, key_dtype=key_dtype))


@pytest.mark.parametrize("key_dtype", [E4M3, E5M2], ids=str)
def test_every_byte_of_a_quantised_key_is_read_as_torch_reads_it(key_dtype: torch.dtype) -> None:
    values = torch.arange(256).to(torch.uint8).view(key_dtype)
    finite = values.float().isfinite()
    # One key holds one value; a query of 1 makes the value its logit.
    pool, queries = values.view(256, 1, 1), torch.ones(1, 1, 1)
    slots = torch.arange(256)[finite]
    scale = 1e-3
    total = torch.zeros(slots.numel())
    rows, video = torch.tensor([slots.numel() - 1]), torch.arange(slots.numel())
    interpreted(KERNELS, total, queries, pool, slots, rows, video, scale, None)
    expected = torch.softmax(values.float()[finite] * scale, dim=0)
    torch.testing.assert_close(total, expected, rtol=RTOL, atol=0)


@pytest.mark.parametrize("key_dtype", [E4M3, E5M2], ids=str)
def test_a_quantised_key_that_is_not_a_number_stays_one(key_dtype: torch.dtype) -> None:
    arguments = ScoreCase(key_dtype=key_dtype).arguments()
    pool, slots = arguments[2:4]
    pool[slots[3]] = torch.full((), torch.nan).to(key_dtype)
    assert np.isnan(scores_of(ScoreCase(), arguments)).all()


@pytest.mark.parametrize(
    ("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (7, 1), (28, 4), (40, 2)], ids=str
)
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_every_grouping_of_heads_equals_the_reference(heads: int, kv_heads: int, rows: int) -> None:
    assert_equals_the_reference(
        ScoreCase(heads=heads, kv_heads=kv_heads, rows=rows, head_dim=16, dtype=HALF)
    )


@pytest.mark.parametrize(
    ("length", "rows"), [(1, 1), (2, 1), (2, 2), (15, 4), (63, 9), (64, 1), (65, 33), (129, 100)]
)
@pytest.mark.parametrize("dtype", [FULL, HALF], ids=str)
def test_prompts_around_the_size_of_a_tile_equal_the_reference(
    length: int, rows: int, dtype: torch.dtype
) -> None:
    assert_equals_the_reference(ScoreCase(length=length, rows=rows, head_dim=16, dtype=dtype))


@pytest.mark.parametrize("length", [SPLIT - 1, SPLIT, SPLIT + 1, 2 * SPLIT, 3 * SPLIT + 7])
def test_any_number_of_splits_equals_the_reference(length: int) -> None:
    assert_equals_the_reference(ScoreCase(length=length, rows=3, head_dim=16, dtype=HALF))


@pytest.mark.parametrize("length", [31, 2 * SPLIT + 5])
@pytest.mark.parametrize("logit_cap", [None, 5.0])
def test_the_torch_version_is_its_sibling(length: int, logit_cap: float | None) -> None:
    case = ScoreCase(length=length, rows=4, head_dim=16, logit_cap=logit_cap)
    ours, torchs = case.arguments(), case.arguments()
    interpreted(KERNELS, *ours)
    torch_scores.add_layer_scores(*torchs, key_block=4096)
    torch.testing.assert_close(ours[0], torchs[0], rtol=RTOL, atol=0)


@pytest.mark.parametrize(
    "query_positions", [[29], [0], [0, 29], [12, 13, 14], [28, 3, 17]], ids=str
)
@pytest.mark.parametrize("video", [[0], [29], [2, 3, 13, 14, 15, 28], [20, 5, 5]], ids=str)
def test_rows_anywhere_see_only_the_video_up_to_themselves(
    video: list[int], query_positions: list[int]
) -> None:
    case = ScoreCase(length=30, rows=len(query_positions), head_dim=16)
    _, *first, _, _, scale, cap = case.arguments()
    rest = (torch.tensor(query_positions), torch.tensor(video), scale, cap)
    ours, torchs = torch.zeros(len(video)), torch.zeros(len(video))
    interpreted(KERNELS, ours, *first, *rest)
    torch_scores.add_layer_scores(torchs, *first, *rest, key_block=4096)
    torch.testing.assert_close(ours, torchs, rtol=RTOL, atol=0)
    assert (ours == 0).sum() == (torch.tensor(video) > max(query_positions)).sum()


def test_a_row_that_sees_nothing_of_a_later_split_is_not_spoilt_by_it() -> None:
    case = ScoreCase(length=2 * SPLIT + 9, rows=2, head_dim=16, video=(0, 40))
    arguments = case.arguments()
    arguments[4].copy_(torch.tensor([30, 2 * SPLIT + 8]))
    torchs = (torch.zeros(40), *arguments[1:])
    interpreted(KERNELS, *arguments)
    torch_scores.add_layer_scores(*torchs, key_block=4096)
    torch.testing.assert_close(arguments[0], torchs[0], rtol=RTOL, atol=0)


def test_a_layer_is_added_to_what_the_total_holds() -> None:
    case = ScoreCase()
    arguments = case.arguments()
    arguments[0].fill_(3.0)
    added = scores_of(case, arguments) - 3.0 / (case.rows * case.heads)
    np.testing.assert_allclose(added, case.expected(), rtol=1e-4)


def test_logits_far_beyond_the_range_of_exp_stay_finite() -> None:
    case = ScoreCase(length=SPLIT + 30, rows=3, head_dim=16, spread=1e4)
    # Logits near 1e5 are rounded to 1/128, and so are the exponents: hence one loose tolerance.
    np.testing.assert_allclose(scores_of(case), case.expected(), atol=0.02)


def fused_halves(pool: torch.Tensor) -> torch.Tensor:
    """K as a half of one allocation, as SGLang's ``MHATokenToKVPool`` makes it."""
    return torch.stack([pool, torch.full_like(pool, torch.nan)])[0]


def heads_outside(pool: torch.Tensor) -> torch.Tensor:
    return pool.transpose(0, 1).contiguous().transpose(0, 1)


def rows_apart(pool: torch.Tensor) -> torch.Tensor:
    return torch.stack([pool, torch.full_like(pool, torch.nan)], dim=1)[:, 0]


def elements_apart(pool: torch.Tensor) -> torch.Tensor:
    return torch.stack([pool, torch.full_like(pool, torch.nan)], dim=-1)[..., 0]


@pytest.mark.parametrize("layout", [fused_halves, heads_outside, rows_apart, elements_apart])
@pytest.mark.parametrize("dtype", [FULL, HALF], ids=str)
def test_strides_of_the_pool_and_of_the_queries_do_not_matter(
    layout: Any, dtype: torch.dtype
) -> None:
    case = ScoreCase(dtype=dtype)
    total, queries, pool, *rest = case.arguments()
    plain = scores_of(case)
    laid_out = (total, elements_apart(queries), layout(pool), *rest)
    assert np.array_equal(scores_of(case, laid_out), plain)


def test_slots_of_the_request_table_may_be_int32_and_strided() -> None:
    case = ScoreCase()
    total, queries, pool, slots, *rest = case.arguments()
    table = torch.stack([slots, torch.full_like(slots, -1)], dim=1).to(torch.int32)
    assert np.array_equal(
        scores_of(case, (total, queries, pool, table[:, 0], *rest)), scores_of(case)
    )


@pytest.mark.parametrize("dtype", [FULL, HALF], ids=str)
@pytest.mark.parametrize("length", [77, 2 * SPLIT + 3])
def test_the_same_prompt_gives_the_same_bits_wherever_its_slots_lie(
    length: int, dtype: torch.dtype
) -> None:
    case = ScoreCase(length=length, rows=9, heads=3, kv_heads=1, head_dim=16, dtype=dtype)
    first = scores_of(case)
    assert np.array_equal(scores_of(case), first)
    for slot_seed in (1, 2):
        assert np.array_equal(scores_of(case, case.arguments(slot_seed)), first)


def test_keys_that_no_row_sees_change_nothing() -> None:
    case = ScoreCase(length=90, rows=3, head_dim=16, video=(0, 40))
    scores = []
    for value in (0.0, 7.0):
        arguments = case.arguments()
        arguments[4].copy_(torch.tensor([50, 51, 52]))
        arguments[2][arguments[3][53:]] = value
        scores.append(scores_of(case, arguments))
    assert np.array_equal(*scores)


@pytest.mark.slow
def test_slots_beyond_two_to_the_31_elements_are_read() -> None:
    case = ScoreCase(length=40, heads=1, kv_heads=1, head_dim=16, key_dtype=E4M3)
    # Slots of the request table are int32; it is the offset that needs more.
    far = (torch.arange(40) * 3 + 2**31 // case.head_dim).to(torch.int32)
    queries, keys = case.vectors()
    rows, video = case.positions()
    total = torch.zeros(video.numel())
    interpreted(
        "tests.support.large_pool:add_layer_scores",
        total,
        queries,
        keys,
        far,
        rows,
        video,
        case.scale,
        None,
    )
    np.testing.assert_allclose(total.numpy() / (case.rows * case.heads), case.expected(), rtol=RTOL)


@pytest.mark.parametrize("case", [ScoreCase(), ScoreCase(head_dim=512)], ids=["256", "512"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_device_decides_which_version_runs(device: str, case: ScoreCase) -> None:
    total, queries, pool, slots, rows, video, scale, _ = case.arguments()
    # Without a GPU nothing can be computed on one; what would run is all that is asked here.
    with (
        mock.patch.object(triton_scores, "add_layer_scores") as triton_version,
        mock.patch.object(torch_scores, "add_layer_scores") as torch_version,
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        moved = [torch.empty(t.shape, dtype=t.dtype, device=device) for t in (total, queries, pool)]
        accumulate_layer_scores(*moved, slots, rows, video, scale)
    fits = case.head_dim <= triton_scores.MAX_HEAD_DIM
    on_triton = device == "cuda" and fits
    assert (triton_version.called, torch_version.called) == (on_triton, not on_triton)


@pytest.mark.parametrize("video", [(0, 0), (0, 40)], ids=str)
def test_without_rows_or_video_nothing_is_launched(video: tuple[int, int]) -> None:
    case = ScoreCase(video=video, rows=0 if video[1] else 5)
    total, queries, pool, slots, rows, video_positions, scale, _ = case.arguments()
    with mock.patch.object(torch_scores, "add_layer_scores", side_effect=AssertionError):
        accumulate_layer_scores(total, queries, pool, slots, rows, video_positions, scale)
    assert not total.any()
