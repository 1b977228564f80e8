"""The two forms of attention over one key set, and the merge of several."""

from __future__ import annotations

import pytest
import torch

from specvlm_sglang.cpu.attention import ops
from tests.support.attention import TOLERANCE


def inputs(dtype, rows=9, keys=70):
    torch.manual_seed(0)
    shapes = ((1, 6, rows, 16), (1, 2, keys, 16), (1, 2, keys, 16))
    return [torch.randn(shape).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", ["free", "causal", "masked"])
def test_a_cap_far_above_the_scores_changes_nothing(dtype, form):
    q, k, v = inputs(dtype, rows=70)
    mask = None
    if form == "masked":
        hidden = torch.rand(1, 1, 70, 70) > 0.5
        hidden[..., 0] = False
        mask = torch.zeros(1, 1, 70, 70, dtype=dtype).masked_fill(hidden, -torch.inf)
    arguments = (q, k, v, 0.25, mask, form == "causal")
    out, lse = ops.attend(*arguments)
    plain_out, plain_lse = ops.attend(*arguments, logit_cap=1e4)
    tolerance = {"rtol": 0, "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(out, plain_out, **tolerance)
    torch.testing.assert_close(lse, plain_lse, **tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("logit_cap", [0.0, 2.0])
def test_merging_disjoint_key_sets_is_attention_over_all(dtype, logit_cap):
    q, k, v = inputs(dtype)
    whole, _ = ops.attend(q, k, v, 0.25, logit_cap=logit_cap)
    parts = [
        ops.attend(q, k[:, :, keys], v[:, :, keys], 0.25, logit_cap=logit_cap)
        for keys in (slice(0, 3), slice(3, 41), slice(41, 70))
    ]
    torch.testing.assert_close(ops.merge(parts), whole, rtol=0, atol=TOLERANCE[dtype])


def test_merging_weighs_key_sets_by_their_scores():
    q, k, v = inputs(torch.float32)
    k[:, :, :10] *= 100
    whole, _ = ops.attend(q, k, v, 0.25)
    parts = [ops.attend(q, k[:, :, s], v[:, :, s], 0.25) for s in (slice(10), slice(10, 70))]
    torch.testing.assert_close(ops.merge(parts), whole, rtol=0, atol=1e-5)
