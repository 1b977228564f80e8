"""LLaVA-OneVision pairs: what fits, what does not, and lmms-lab's own format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specvlm_sglang.models.llava_onevision import converted_checkpoint
from specvlm_sglang.models.pair import check_pair
from tests.support import checkpoints
from tests.support.llava_checkpoints import DRAFT_TOWER, llava_onevision


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    check_pair.cache_clear()
    yield
    check_pair.cache_clear()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("llava-pair")
    target = llava_onevision(folder / "target")
    return target, llava_onevision(folder / "draft", checkpoints.DRAFT, DRAFT_TOWER, seed=1)


def edited(source: Path, folder: Path, **changes: Any) -> str:
    """A copy whose configuration differs; a key with a dot is one of the tower."""
    copy = folder / "edited"
    shutil.copytree(source, copy)
    content = json.loads((copy / "config.json").read_text())
    for key, value in changes.items():
        owner = content["vision_config"] if key in content["vision_config"] else content
        assert owner[key] != value
        owner[key] = value
    (copy / "config.json").write_text(json.dumps(content))
    return str(copy)


def test_a_narrower_draft_is_accepted_with_either_numbering(pair: tuple[Path, Path]) -> None:
    for positions in (None, "contiguous", "original"):
        check_pair(str(pair[0]), str(pair[1]), positions=positions)


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 34},
        {"patch_size": 3},
        {"image_grid_pinpoints": [[30, 30], [60, 60]]},
        {"vision_aspect_ratio": "anyres_max_9"},
        {"image_token_index": 3},
        {"video_token_index": 3},
    ],
    ids=str,
)
def test_a_draft_that_lays_pictures_out_differently_is_refused_by_the_difference(
    pair: tuple[Path, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    draft = edited(pair[1], tmp_path, **change)
    (name,) = change
    name = name.replace("token_index", "token_id")
    with pytest.raises(ValueError, match=f"^{name} is .* in the target {pair[0]} and "):
        check_pair(str(pair[0]), draft)


def test_the_two_families_do_not_mix(pair: tuple[Path, Path], vl_target: Path) -> None:
    with pytest.raises(ValueError, match=r"a LLaVA-OneVision model, the target .* a Qwen2\.5-VL"):
        check_pair(str(vl_target), str(pair[1]))


def test_contiguous_positions_are_refused_for_m_rope(vl_target: Path, vl_draft: Path) -> None:
    check_pair(str(vl_target), str(vl_draft), positions="original")
    with pytest.raises(ValueError, match=r"--specvlm-positions=contiguous .* Qwen2\.5-VL"):
        check_pair(str(vl_target), str(vl_draft), positions="contiguous")


@pytest.mark.parametrize("as_draft", [False, True])
def test_lmms_labs_format_is_refused_with_both_names(
    pair: tuple[Path, Path], tmp_path: Path, as_draft: bool
) -> None:
    original = tmp_path / "llava-onevision-qwen2-72b-ov-chat"
    original.mkdir()
    (original / "config.json").write_text(
        json.dumps({"architectures": ["LlavaQwenForCausalLM"], "model_type": "llava"})
    )
    models = [str(pair[0]), str(original)]
    with pytest.raises(
        ValueError,
        match=f"does not serve {original}: LlavaQwenForCausalLM .* "
        "llava-hf/llava-onevision-qwen2-72b-ov-chat-hf",
    ):
        check_pair(*(models if as_draft else models[::-1]))


@pytest.mark.parametrize(
    ("path", "hidden_size", "expected"),
    [
        ("lmms-lab/llava-onevision-qwen2-0.5b-si", 896, "llava-onevision-qwen2-0.5b-si-hf"),
        ("lmms-lab/llava-onevision-qwen2-7b-ov/", 3584, "llava-onevision-qwen2-7b-ov-hf"),
        ("lmms-lab/llava-onevision-qwen2-72b-ov-sft", 8192, "llava-onevision-qwen2-72b-ov-hf"),
        ("/models/mine", 8192, "llava-onevision-qwen2-72b-ov-hf"),
        ("/models/mine", 896, "llava-onevision-qwen2-0.5b-ov-hf"),
        ("/models/mine", None, "llava-onevision-qwen2-7b-ov-hf"),
    ],
)
def test_the_hugging_face_form_is_named_after_the_original_or_its_size(
    path: str, hidden_size: int | None, expected: str
) -> None:
    assert converted_checkpoint(path, hidden_size) == f"llava-hf/{expected}"
