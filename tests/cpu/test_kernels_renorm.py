"""Top-k and top-p filters and seeded random numbers against SGLang's Triton kernels."""

from __future__ import annotations

import pytest
import torch

from specvlm_sglang.cpu.kernels.hashing import murmur_hash32
from specvlm_sglang.cpu.kernels.renorm import top_k_renorm_prob, top_p_renorm_prob
from tests.support.triton_interpreter import interpreted

RENORM = "sglang.kernels.ops.sampling.renorm_triton"
HASH = "sglang.kernels.ops.sampling.murmur_hash:murmur_hash32_kernel"
NO_LIMIT = 1 << 30
"""SGLang's ``TOP_K_ALL``."""


def distributions(rows: int, vocab: int, *, spread: float = 3.0, seed: int = 0) -> torch.Tensor:
    """Rows that sum to 1 exactly, so that no cut depends on the order of summation."""
    generator = torch.Generator().manual_seed(seed)
    probs = (spread * torch.randn(rows, vocab, generator=generator)).double().softmax(1)
    units = (probs * 2**24).long()
    units[torch.arange(rows), units.argmax(1)] += 2**24 - units.sum(1)
    return units.float() / 2**24


def with_ties(rows: int, vocab: int) -> torch.Tensor:
    """Few distinct probabilities, and many zeros."""
    weights = torch.randint(-3, 5, (rows, vocab), generator=torch.Generator().manual_seed(1))
    weights = weights.clamp(min=0).float()
    weights[:, 0] += 1
    return weights / weights.sum(1, keepdim=True)


def assert_same_filter(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("make", [distributions, with_ties])
@pytest.mark.parametrize("vocab", [1, 7, 1000, 33_001])
def test_top_k_keeps_and_weighs_what_sglangs_triton_version_does(vocab: int, make) -> None:
    top_k = torch.tensor([1, 2, 20, 100, 300, 5000, NO_LIMIT], dtype=torch.int32)
    probs = make(len(top_k), vocab)
    found = top_k_renorm_prob(probs, top_k)
    expected = interpreted(f"{RENORM}:top_k_renorm_probs_triton", probs, top_k)
    assert_same_filter(found, expected)


@pytest.mark.parametrize("spread", [0.1, 3.0, 9.0])
@pytest.mark.parametrize("vocab", [1, 7, 1000, 33_001])
def test_top_p_keeps_and_weighs_what_sglangs_triton_version_does(vocab: int, spread: float) -> None:
    top_p = torch.tensor([0.01, 0.31, 0.5, 0.9, 0.999, 1.0])
    probs = distributions(len(top_p), vocab, spread=spread)
    found = top_p_renorm_prob(probs, top_p)
    expected = interpreted(f"{RENORM}:top_p_renorm_probs_triton", probs, top_p)
    assert_same_filter(found, expected)


def test_top_p_after_top_k_sees_only_what_top_k_left() -> None:
    probs = distributions(5, 20_000, spread=1.0)
    kept = top_k_renorm_prob(probs, 20)
    found = top_p_renorm_prob(kept, 0.9)
    assert_same_filter(found, interpreted(f"{RENORM}:top_p_renorm_probs_triton", kept, 0.9))
    assert ((found > 0).sum(1) < 20).all()


def test_a_filter_leaves_its_input_alone_and_returns_distributions() -> None:
    probs = distributions(4, 501)
    before = probs.clone()
    for filtered in (top_k_renorm_prob(probs, 7), top_p_renorm_prob(probs, 0.6)):
        torch.testing.assert_close(filtered.sum(1), torch.ones(4))
    assert torch.equal(probs, before)


@pytest.mark.parametrize("columns", [1, 6, 1500])
def test_seeded_numbers_equal_sglangs_bit_for_bit(columns: int) -> None:
    seeds = torch.tensor([0, 1, 42, 2**40 + 5, -3]).to(torch.uint64)
    positions = torch.tensor([0, 7, 2**31, 2**32 - 1, 5])
    column_indices = torch.arange(columns)
    expected = torch.zeros(5, columns, dtype=torch.uint32)
    blocks = -(-columns // 1024)
    arguments = (seeds, positions, column_indices, expected, 5, columns)
    interpreted(HASH, *arguments, grid=(5, blocks), BLOCK_SIZE=1024)
    found = murmur_hash32(seeds, positions.to(torch.uint64), column_indices)
    assert found.dtype == torch.uint32
    assert found.tolist() == expected.tolist()
    assert len({tuple(row) for row in found.tolist()}) == 5
