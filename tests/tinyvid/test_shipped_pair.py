"""The pair that ships: complete, small, loads cleanly, and knows what it sees."""

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from benchmarks.tinyvid.acceptance import Setting, interval, measure
from benchmarks.tinyvid.clips import LENGTHS, held_out
from benchmarks.tinyvid.facts import compare, shares
from benchmarks.tinyvid.reader import Reader
from specvlm_sglang.tools.demo import (
    description,
    draft_path,
    make_clip,
    questions_and_answers,
    target_path,
)

PATHS = {"target": target_path(), "draft": draft_path()}
TARGET_FLOOR = 0.95
"""Share of right facts; see benchmarks/results/tinyvid for the measured one."""
ACCEPT_FLOOR = 4.5
"""Tokens per verify round, bonus included."""


@pytest.fixture(scope="module")
def pair() -> dict[str, Reader]:
    return {role: Reader(path) for role, path in PATHS.items()}


@pytest.mark.parametrize("role", PATHS)
def test_a_shipped_checkpoint_is_complete_and_loads_without_warnings(
    role: str, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    names = {path.name for path in PATHS[role].iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    }
    with caplog.at_level(logging.WARNING):
        model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            PATHS[role], output_loading_info=True
        )
        AutoProcessor.from_pretrained(PATHS[role])
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not caplog.records
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]
    assert model.dtype == torch.bfloat16
    low, high = {"target": (4e6, 8e6), "draft": (0.5e6, 1e6)}[role]
    assert low <= sum(parameter.numel() for parameter in model.parameters()) <= high


def test_the_pair_shares_its_tokenizer_and_takes_little_room() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (PATHS["target"] / name).read_bytes() == (PATHS["draft"] / name).read_bytes()
    sizes = [f.stat().st_size for path in PATHS.values() for f in path.rglob("*") if f.is_file()]
    assert sum(sizes) <= 24 * 2**20


def test_no_vision_block_attends_beyond_its_window() -> None:
    for path in PATHS.values():
        config = json.loads((path / "config.json").read_text())
        assert config["vision_config"]["fullatt_block_indexes"] == []


def test_the_target_describes_clips_that_it_never_saw(pair, tmp_path: Path) -> None:
    counts = []
    for prompt in held_out(LENGTHS["training"], 6, tmp_path):
        tokens = pair["target"].greedy(pair["target"].question(prompt))
        assert tokens[-1] == pair["target"].end
        counts.append(compare(pair["target"].text(tokens), prompt.answer))
    assert shares(counts)["all"] >= TARGET_FLOOR


def test_the_draft_helps_and_needs_the_video(pair, tmp_path: Path) -> None:
    full, blind = Setting("none", 1.0), Setting("none", 0.0)
    found = [
        measure(pair["target"], pair["draft"], prompt, [full, blind])[0]
        for prompt in held_out(LENGTHS["training"], 6, tmp_path)
    ]
    accept = {s: interval([rounds[s] for rounds in found])[0] for s in (full, blind)}
    assert accept[full] >= ACCEPT_FLOOR
    assert accept[blind] < 0.6 * accept[full]


def test_the_demo_writes_a_clip_with_its_description_and_questions(tmp_path: Path) -> None:
    scene = make_clip(tmp_path / "clip.mp4", seed=3, seconds=6)
    assert (tmp_path / "clip.mp4").stat().st_size > 0
    prompt, truth = description(scene)
    assert prompt.startswith("Describe")
    assert all(actor.shape in truth for actor in scene.actors)
    assert len(questions_and_answers(scene)) >= len(scene.actors)
