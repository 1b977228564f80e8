"""Block-by-block attention of vision towers against SGLang's dense form."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.layers.attention.vision import VisionSdpaAttention

from specvlm_sglang.cpu import vision_attention
from specvlm_sglang.cpu.vision_attention import attend_within_blocks
from tests.support.hooks import unhooked

HEAD_DIM = 16
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
BOUNDARIES = {
    "one block": [0, 24],
    "equal windows": [0, 8, 16, 24],
    "windows at an edge": [0, 16, 24, 40, 48, 52, 54],
    "unequal blocks": [0, 3, 4, 11, 24],
    "empty blocks": [0, 0, 5, 5, 5, 12, 12],
    "blocks of one": [0, 1, 2, 3],
    "nothing": [0],
    "only empty blocks": [0, 0, 0],
}
TARGET = ("sglang.srt.layers.attention.vision", "VisionSdpaAttention.forward")


@pytest.fixture(autouse=True)
def plain() -> Iterator[None]:
    with unhooked(TARGET):
        yield


def draw(tokens: int, heads: int, kv_heads: int, dtype: torch.dtype = torch.float32) -> list:
    generator = torch.Generator().manual_seed(tokens + heads)
    return [
        torch.randn(tokens, count, HEAD_DIM, generator=generator).to(dtype)
        for count in (heads, kv_heads, kv_heads)
    ]


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, boundaries: list[int]) -> torch.Tensor:
    """SGLang's own module, which needs one KV head per query head."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    layer = VisionSdpaAttention(HEAD_DIM, q.shape[1], q.shape[1], flatten_batch=True)
    out = layer.forward(q, k, v, bsz=1, cu_seqlens=torch.tensor(boundaries, dtype=torch.int32))
    return out.view(q.shape)


def check(
    boundaries: list[int], heads: int, kv_heads: int, dtype: torch.dtype = torch.float32
) -> None:
    q, k, v = draw(boundaries[-1], heads, kv_heads, dtype)
    found = attend_within_blocks(q, k, v, boundaries, HEAD_DIM**-0.5)
    assert found.dtype == dtype
    if boundaries[-1] == 0:
        assert found.shape == q.shape
        return
    expected = dense(q, k, v, boundaries)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (4, 1)])
@pytest.mark.parametrize("name", BOUNDARIES)
def test_blocks_equal_sglangs_dense_mask(
    name: str, heads: int, kv_heads: int, dtype: torch.dtype
) -> None:
    check(BOUNDARIES[name], heads, kv_heads, dtype)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any))
def test_any_block_lengths_equal_sglangs_dense_mask(lengths: list[int]) -> None:
    boundaries = [0]
    for length in lengths:
        boundaries.append(boundaries[-1] + length)
    check(boundaries, 2, 2)


def test_tokens_see_their_own_block_and_nothing_else() -> None:
    boundaries = BOUNDARIES["unequal blocks"]
    q, k, v = draw(24, 2, 2)
    before = attend_within_blocks(q, k, v, boundaries, 1.0)
    for start, stop in pairwise(boundaries):
        changed = v.clone()
        changed[start:stop] += 1
        moved = (attend_within_blocks(q, k, changed, boundaries, 1.0) - before).abs().amax((1, 2))
        inside = torch.zeros(24, dtype=torch.bool)
        inside[start:stop] = True
        assert ((moved > 0.5) == inside).all()


@pytest.mark.parametrize("boundaries", [[], [0, 5], [2, 24], [0, 25]])
def test_boundaries_that_do_not_cover_the_sequence_are_refused(boundaries: list[int]) -> None:
    with pytest.raises(ValueError, match="must run from 0 to the 24 tokens"):
        attend_within_blocks(*draw(24, 2, 2), boundaries, 1.0)


@pytest.mark.parametrize(("flatten_batch", "blockwise"), [(True, True), (False, False)])
def test_sglangs_backend_gives_the_same_with_our_form_installed(
    flatten_batch: bool, blockwise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = VisionSdpaAttention(HEAD_DIM, 2, 2, flatten_batch=flatten_batch)
    q, k, v = draw(24, 2, 2)
    batch = 1 if flatten_batch else 3
    limits = torch.tensor([0, 8, 16, 24], dtype=torch.int32)
    expected = layer.forward(q, k, v, bsz=batch, cu_seqlens=limits)
    calls = []

    def counted(*args: object) -> torch.Tensor:
        calls.append(args)
        return attend_within_blocks(*args)

    monkeypatch.setattr(vision_attention, "attend_within_blocks", counted)
    vision_attention.install()
    found = layer.forward(q, k, v, bsz=batch, cu_seqlens=limits)
    assert bool(calls) == blockwise
    torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=0, atol=1e-5)


def test_an_explicit_mask_and_single_precision_softmax_stay_sglangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vision_attention.install()
    monkeypatch.setattr(vision_attention, "attend_within_blocks", None)
    q, k, v = draw(6, 2, 2)
    limits = torch.tensor([0, 2, 6], dtype=torch.int32)
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    plain = VisionSdpaAttention(HEAD_DIM, 2, 2, flatten_batch=True)
    single = VisionSdpaAttention(
        HEAD_DIM, 2, 2, flatten_batch=True, softmax_in_single_precision=True
    )
    assert plain.forward(q, k, v, bsz=1, cu_seqlens=limits, attention_mask=mask).isfinite().all()
    assert plain.forward(q, k, v, bsz=1).isfinite().all()
    # One token attends to itself alone, masked or not.
    single.forward(*draw(1, 2, 2), bsz=1, cu_seqlens=torch.tensor([0, 1]))


PEAK = """
import resource, sys, torch
from specvlm_sglang.cpu.vision_attention import attend_within_blocks
torch.set_num_threads(1)
patches = 65536
q = torch.zeros(patches, 1, 16)
attend_within_blocks(q[:256], q[:256], q[:256], [0, 64, 128, 256], 1.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attend_within_blocks(q, q, q, list(range(0, patches + 1, 64)), 1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_square_of_the_patches() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, timeout=120, check=True
    )
    # A dense mask of 65536 patches takes 4 GiB; q, k, v and the output 4 MiB each.
    assert int(run.stdout) < 200 * 1024, "KiB"
