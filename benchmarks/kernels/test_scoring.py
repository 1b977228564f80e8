"""Time of one layer's language-to-video scores on the CPU: torch beside the NumPy reference.

    pytest benchmarks/kernels/test_scoring.py

The shape is that of a Qwen2.5-VL 7B layer: 28 query heads on 4 KV heads of width 128, keys
scattered over a pool. NumPy calculates in float64 and torch in float32. The Triton kernel is not
here: its interpreter's time says nothing about a GPU's.
"""

import numpy as np
import pytest

from reference.scoring import language_to_video_scores_streamed
from specvlm_sglang.scoring.attention_scores import accumulate_layer_scores, mean_scores
from tests.support.score_case import ScoreCase

LENGTHS = {"1k": 1 << 10, "4k": 1 << 12}
ROWS = (16, 64)


def case_of(video_tokens, rows):
    return ScoreCase(
        length=video_tokens + rows,
        rows=rows,
        heads=28,
        kv_heads=4,
        head_dim=128,
        video=(0, video_tokens),
    )


def reference_of(case):
    queries, keys = (array.float().numpy()[None] for array in case.vectors())
    rows, video = (positions.numpy() for positions in case.positions())
    return lambda: language_to_video_scores_streamed(
        queries, keys, query_positions=rows, video_positions=video, scale=case.scale
    )


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("n", LENGTHS.values(), ids=LENGTHS.keys())
def test_numpy(benchmark, n, rows):
    benchmark.group = f"score {n} video tokens by {rows} rows"
    scores = benchmark.pedantic(reference_of(case_of(n, rows)), rounds=5)
    assert 0 < scores.sum() <= 1


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("n", LENGTHS.values(), ids=LENGTHS.keys())
def test_torch(benchmark, n, rows):
    benchmark.group = f"score {n} video tokens by {rows} rows"
    case = case_of(n, rows)
    total, *inputs, scale, _ = case.arguments()

    def score():
        total.zero_()
        accumulate_layer_scores(total, *inputs, scale)

    benchmark(score)
    scores = mean_scores(total, layers=1, rows=rows, heads=28)
    np.testing.assert_allclose(scores.numpy(), reference_of(case)(), rtol=1e-3, atol=1e-7)
