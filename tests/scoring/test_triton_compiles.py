"""The Triton scores compile for the GPUs that people have, without spilling registers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.kernels.triton_resources import (
    CAPABILITIES,
    CASES,
    ROWS,
    SELECTION,
    launches,
    work_of_a_layer,
)
from specvlm_sglang.scoring import triton_scores
from specvlm_sglang.scoring.warm_up import compile_kernels, layer_arguments
from specvlm_sglang.tools.sizing.cost import scoring
from specvlm_sglang.tools.sizing.published import published_model
from tests.support.sync_guard import NoHostSync
from tests.support.triton_compiler import Launch, launches_of

# Three programs of four warps share the 65536 registers of an SM.
REGISTERS = 168
# What a program gets on every GPU from sm_80 on, consumer cards included.
SHARED = 99 * 1024
QUICK = {
    "bf16 x bf16, 128": CAPABILITIES,
    "bf16 x e4m3, 80": (90,),
    "float32 x float32, 256": (90,),
    SELECTION: (90,),
}


def combinations() -> list[object]:
    return [
        pytest.param(
            name,
            capability,
            marks=[] if capability in QUICK.get(name, ()) else [pytest.mark.slow],
            id=f"{name}, sm_{capability}",
        )
        for name in (*CASES, SELECTION)
        for capability in CAPABILITIES
    ]


@pytest.mark.parametrize(("name", "capability"), combinations())
def test_a_kernel_compiles_within_its_bounds(name: str, capability: int) -> None:
    for launch in launches(name):
        found = launch.compiled(capability)
        assert found.spills == found.stack == 0, launch.name
        assert 0 < found.registers <= REGISTERS, launch.name
        assert found.shared <= SHARED, launch.name


def kernels(length: int, rows: int) -> list[tuple[object, ...]]:
    """What decides which compiled kernels a prompt needs."""
    case = replace(CASES["bf16 x bf16, 128"], length=length, rows=rows)
    return [specialisation(launch) for launch in launches(case)]


def specialisation(launch: Launch) -> tuple[object, ...]:
    source, options = launch.source(90)
    return launch.name, source.signature, source.constants, source.attrs, options


def test_prompts_of_every_length_share_the_compiled_kernels() -> None:
    # Triton treats 1, multiples of 16 and other numbers differently unless told not to.
    first = kernels(length=2048, rows=16)
    assert [name for name, *_ in first] == ["row_log_sums", "combine_splits", "column_sums"]
    for length, rows in ((2047, 1), (5000, 17), (2049, 256), (70_001, 100)):
        assert kernels(length, rows) == first


def test_a_prompt_of_one_split_needs_no_combination() -> None:
    assert [name for name, *_ in kernels(length=1024, rows=5)] == ["row_log_sums", "column_sums"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("key_dtype", [None, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_operands_of_16_bits_or_less_are_multiplied_in_16_bits(
    key_dtype: torch.dtype | None, dtype: torch.dtype
) -> None:
    case = replace(CASES["bf16 x bf16, 128"], dtype=dtype, key_dtype=key_dtype)
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    for launch in launches(case):
        if "DOT_DTYPE" in launch.kwargs:
            assert str(launch.kwargs["DOT_DTYPE"]) == name


def test_launching_reads_no_value_from_the_device() -> None:
    # Meta tensors have no values: whatever would make the host wait for one raises.
    case = CASES["bf16 x bf16, 128"]
    with NoHostSync():
        assert len(launches(case)) == 3


def test_grids_stay_within_the_limits_of_cuda_for_a_million_tokens() -> None:
    case = replace(CASES["bf16 x bf16, 128"], length=1 << 20, rows=4096)
    for launch in launches(case):
        first, *others = launch.grid
        assert first < 2**31
        assert all(size <= 65535 for size in others)


@pytest.mark.parametrize("key_dtype", ["bf16", "e4m3"])
def test_the_warm_up_compiles_what_prompts_launch(key_dtype: str) -> None:
    case = CASES[f"bf16 x {key_dtype}, 128"]
    dtype = torch.float8_e4m3fn if key_dtype == "e4m3" else torch.bfloat16
    pool = torch.empty((4096, case.kv_heads, case.head_dim), dtype=dtype, device="meta")
    arguments = layer_arguments(case.heads, torch.bfloat16, pool)
    warm = launches_of(triton_scores.add_layer_scores, *arguments, None)
    assert [specialisation(launch) for launch in warm] == [
        specialisation(launch) for launch in launches(case)
    ]


def test_the_warm_up_reads_the_pool_and_changes_nothing() -> None:
    pool = torch.randn(8, 2, 16)
    before = pool.clone()
    compile_kernels(4, torch.float32, pool)
    assert torch.equal(pool, before)


@pytest.mark.parametrize("video_tokens", [1_000, 25_000])
def test_the_computed_work_of_a_layer_is_the_cost_models(video_tokens: int) -> None:
    """Two passes over the keys and their products; the rest of the traffic is small beside them."""
    found = work_of_a_layer(video_tokens)
    layer = replace(published_model("qwen2.5-vl-32b"), layers=1)
    whole = scoring(layer, ROWS, video_tokens + ROWS)
    kernels_ = [found[name] for name in ("row_log_sums", "combine_splits", "column_sums")]
    assert sum(work.flops for work in kernels_) == pytest.approx(whole.flops, rel=0.15)
    assert sum(work.bytes for work in kernels_) == pytest.approx(whole.bytes, rel=0.15)
