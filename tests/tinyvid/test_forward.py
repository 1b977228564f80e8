"""The lean forward used in training against the transformers class."""

import numpy as np
import pytest
import torch

from benchmarks.tinyvid.data import Shape, make_batch
from benchmarks.tinyvid.model import SIZES, new_model
from benchmarks.tinyvid.train import answer_logits
from tests.support.hf import positions_after_the_largest


@pytest.mark.parametrize("side", [112, 224])
@pytest.mark.parametrize("size", ["target", "draft"])
def test_lean_forward_gives_the_logits_of_the_transformers_class(size: str, side: int) -> None:
    model = new_model(SIZES[size], seed=1).eval()
    # Fresh weights are small; larger ones make every part of the model count.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    batch = make_batch(Shape(side, seconds=4, fps=2, clips=2), seed=3, step=0)
    batch.patches = batch.patches.float()
    with torch.no_grad():
        lean = answer_logits(model, batch)[1]
        expected = []
        for clip in range(2):
            expected.append(_transformers_logits(model, batch, clip, side))
    torch.testing.assert_close(lean, torch.cat(expected), atol=2e-4, rtol=2e-4)


def _transformers_logits(model, batch, clip: int, side: int) -> torch.Tensor:
    """Logits of the answers of one clip, each question in a prompt of its own."""
    grid = torch.tensor([[batch.patches.shape[1], side // 14, side // 14]])
    mask = batch.mask[clip, 0]
    stop = batch.video.stop
    rows = []
    # A question's first row sees the clip and itself alone.
    starts = [row for row in range(stop, mask.shape[0]) if mask[row].sum() == stop + 1]
    ends = [*starts[1:], mask.shape[0]]
    for start, end in zip(starts, ends, strict=True):
        due = batch.goals[clip, start:end] >= 0
        if not due.any():
            continue
        ids = torch.cat([batch.ids[clip, :stop], batch.ids[clip, start:end]])[None]
        positions = torch.cat(
            [batch.positions[:, clip, :stop], batch.positions[:, clip, start:end]], dim=1
        )
        output = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=positions[:, None],
            pixel_values_videos=batch.patches[clip].reshape(-1, 1176),
            video_grid_thw=grid,
            mm_token_type_ids=(ids == model.config.video_token_id).long() * 2,
        )
        rows.append(output.logits[0, stop:][due])
    return torch.cat(rows)


def test_positions_of_a_batch_are_those_of_the_served_model() -> None:
    batch = make_batch(Shape(112, seconds=4, fps=2, clips=6), seed=3, step=0)
    model = new_model(SIZES["draft"], seed=1)
    stop = batch.video.stop
    seen = set()
    for clip in range(6):
        ids = batch.ids[clip : clip + 1, : stop + 5]
        matches = []
        for seconds in (1.0, 2 / 24):
            expected, _ = positions_after_the_largest(
                model.model,
                ids,
                (ids == model.config.video_token_id).int() * 2,
                video_grid_thw=torch.tensor([[4, 8, 8]]),
                second_per_grid_ts=[seconds],
            )
            if np.array_equal(expected[:, 0], batch.positions[:, clip, : stop + 5]):
                matches.append(seconds)
        assert len(matches) == 1, "each clip follows exactly one of the two conventions"
        seen.update(matches)
    assert seen == {1.0, 2 / 24}
