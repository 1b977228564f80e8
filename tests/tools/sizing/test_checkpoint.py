"""Dimensions of checkpoints on this disk: as many parameters as their files hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from safetensors import safe_open

from specvlm_sglang.tools.errors import ToolError
from specvlm_sglang.tools.needs import model_needs
from specvlm_sglang.tools.sizing.checkpoint import dimensions_of, model_of
from tests.support import checkpoints
from tests.support.glm_checkpoints import glm4v
from tests.support.internvl_checkpoints import internvl
from tests.support.llava_checkpoints import llava_onevision
from tests.support.qwen_vl_checkpoints import qwen2_vl, qwen3_vl

BUILD: dict[str, Callable[[Path], Path]] = {
    "Qwen2.5-VL": checkpoints.qwen2_5_vl,
    "Qwen2-VL": qwen2_vl,
    "Qwen3-VL": qwen3_vl,
    "Qwen3-VL-MoE": partial(qwen3_vl, experts=True),
    "InternVL": internvl,
    "InternVL-MoE": partial(internvl, language="qwen3_moe"),
    "LLaVA-OneVision": llava_onevision,
}


@pytest.mark.parametrize("family", BUILD)
def test_matrices_are_nearly_all_that_a_checkpoint_holds(family: str, tmp_path: Path) -> None:
    path = BUILD[family](tmp_path / "model")
    found = dimensions_of(str(path))
    held = 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a mapping)
                shape = tensors.get_slice(name).get_shape()
                # Norms, biases and position tables are no small part of models this narrow.
                if len(shape) > 1 and "pos" not in name:
                    size = 1
                    for side in shape:
                        size *= side
                    held += size
    assert found.parameters == pytest.approx(held, rel=0.005)
    assert found.kv_bytes_per_token == model_needs(str(path)).kv_bytes_per_token


def test_a_checkpoint_is_as_large_as_its_files_and_a_published_name_needs_none(
    vl_target: Path,
) -> None:
    own = model_of(str(vl_target), "--target")
    assert own.weight_bytes == model_needs(str(vl_target)).weight_bytes
    assert "weight files" in own.source
    published = model_of("OpenGVLab/InternVL3_5-38B", "--target")
    assert published.weight_bytes == pytest.approx(76.8e9, rel=0.01)
    assert "table" in published.source


def test_what_cannot_be_sized_is_named_with_its_flag(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"^--draft /nowhere/model: neither a published name"):
        model_of("/nowhere/model", "--draft")
    with pytest.raises(ToolError, match="vision tower of glm4v cannot be sized"):
        model_of(str(glm4v(tmp_path / "glm")), "--target")
