"""Training: resumption, learning, and enlargement of what was trained."""

from pathlib import Path

import pytest
import torch

from benchmarks.tinyvid.data import Shape, make_batch
from benchmarks.tinyvid.model import SIZES, new_model
from benchmarks.tinyvid.muon import orthogonalised
from benchmarks.tinyvid.train import Trainer, answer_logits
from specvlm_sglang.tools.demo.enlarge import (
    enlarge,
    least_parameters,
    most_layers,
    parse_count,
)


def _trainer(**changes) -> Trainer:
    return Trainer("draft", **({"steps": 6, "seed": 1, "rate": 1e-3} | changes))


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = _trainer()
    for _ in range(4):
        whole.advance()
    first = _trainer()
    for _ in range(2):
        first.advance()
    first.write(tmp_path / "checkpoint.pt")
    second = _trainer()
    second.read(tmp_path / "checkpoint.pt")
    for _ in range(2):
        second.advance()
    assert second.step == whole.step == 4
    for (name, a), b in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.slow
def test_a_few_steps_lower_the_loss() -> None:
    trainer = _trainer(steps=12, rate=2e-2)
    losses = [trainer.advance()["loss"] for _ in range(10)]
    assert losses[-1] < losses[0] - 1


@pytest.mark.slow
def test_a_teacher_is_followed() -> None:
    teacher = new_model(SIZES["draft"], seed=7).eval()
    student = _trainer(steps=12, rate=2e-2, teacher=teacher)
    # The exact answers pull elsewhere too, so the student starts far from its teacher.
    with torch.no_grad():
        student.model.lm_head.weight.mul_(8)
    distances = [student.advance()["distance"] for _ in range(10)]
    assert distances[-1] < 0.75 * distances[0]


def test_batches_follow_from_seed_and_step() -> None:
    shape = Shape(112, seconds=4, fps=2, clips=2)
    first, again, other = (make_batch(shape, 0, step) for step in (3, 3, 4))
    assert torch.equal(first.patches, again.patches)
    assert torch.equal(first.ids, again.ids)
    assert not torch.equal(first.patches, other.patches)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 16, 40), (2, 40, 16)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape, generator=generator)))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_an_enlarged_model_says_the_same_in_float32() -> None:
    small = new_model(SIZES["target"], seed=2).eval()
    large = enlarge(small, 40_000_000, layers=8)
    count = sum(parameter.numel() for parameter in large.parameters())
    assert count == pytest.approx(40_000_000, rel=0.02)
    assert large.config.text_config.num_hidden_layers == 8
    batch = make_batch(Shape(112, seconds=4, fps=2, clips=2), seed=3, step=0)
    batch.patches = batch.patches.float()
    with torch.no_grad():
        assert torch.equal(answer_logits(small, batch)[1], answer_logits(large, batch)[1])


def test_an_enlarged_draft_with_copied_kv_heads_says_the_same_in_float32() -> None:
    small = new_model(SIZES["draft"], seed=2).eval()
    for layers, parameters in ((2, 3_000_000), (8, 5_000_000)):
        large = enlarge(small, parameters, layers=layers, kv_heads=2)
        count = sum(parameter.numel() for parameter in large.parameters())
        assert count == pytest.approx(parameters, rel=0.02)
        assert large.config.text_config.num_key_value_heads == 2
        batch = make_batch(Shape(112, seconds=4, fps=2, clips=2), seed=3, step=0)
        batch.patches = batch.patches.float()
        with torch.no_grad():
            found = answer_logits(small, batch)[1], answer_logits(large, batch)[1]
        torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_layers_are_as_many_as_the_parameters_suffice_for() -> None:
    small = new_model(SIZES["draft"], seed=2)
    least = least_parameters(small, 8, 2)
    assert most_layers(small, least, 16, 2) == 8
    assert most_layers(small, least - 1, 16, 2) == 6
    large = enlarge(small, least, layers=8, kv_heads=2)
    assert sum(parameter.numel() for parameter in large.parameters()) == least


def test_an_enlarged_model_attends_as_the_small_one_on_average_over_layers() -> None:
    small = new_model(SIZES["target"], seed=2).eval()
    large = enlarge(small, 40_000_000, layers=8)
    ids = torch.arange(40)[None] * 7 % 500
    means = []
    for model in (small, large):
        model.set_attn_implementation("eager")
        with torch.no_grad():
            found = model.model.language_model(input_ids=ids, output_attentions=True)
        means.append(torch.stack(found.attentions).mean(0))
    torch.testing.assert_close(means[0], means[1], atol=1e-6, rtol=1e-5)


def test_enlargement_refuses_what_it_cannot_do() -> None:
    small = new_model(SIZES["draft"], seed=2)
    with pytest.raises(ValueError, match="parameters must be at least"):
        enlarge(small, 1000)
    with pytest.raises(ValueError, match="layers must be a multiple of 2, got 3"):
        enlarge(small, 10_000_000, layers=3)
    with pytest.raises(ValueError, match="kv_heads must be a multiple of 1 that divides 2, got 3"):
        enlarge(small, 10_000_000, layers=2, kv_heads=3)
    with pytest.raises(ValueError, match="--parameters must be a number like 500M"):
        parse_count("many")
    assert parse_count("1.5B") == 1_500_000_000
