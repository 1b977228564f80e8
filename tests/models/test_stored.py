"""Checkpoints whose files are not what their configuration says are refused by the path."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from specvlm_sglang.models.stored import check_weights
from tests.support import llava_checkpoints
from tests.support.families import FAMILIES

Edit = Callable[[Path], None]
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    check_weights.cache_clear()
    yield
    check_weights.cache_clear()


@pytest.fixture
def copy(vl_draft: Path, tmp_path: Path) -> Path:
    """The draft's directory, to be changed."""
    return Path(shutil.copytree(vl_draft, tmp_path / "draft"))


def says(part: str, **values: int) -> Edit:
    """Write other sizes into a part of ``config.json``."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        for name, value in values.items():
            assert content[part].get(name) != value
            content[part][name] = value
            if name == "num_hidden_layers":
                # transformers counts these itself.
                content[part]["layer_types"] = ["full_attention"] * value
        (folder / "config.json").write_text(json.dumps(content))

    return edit


def lacks(*parts: str) -> Edit:
    """Leave out the tensors that have one of ``parts`` in their names."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        kept = {
            name: tensor
            for name, tensor in tensors.items()
            if not any(part in name for part in parts)
        }
        assert 0 < len(kept) < len(tensors)
        save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})

    return edit


def cut(to: Callable[[int], int]) -> Edit:
    """Cut the file of weights to a part of its length."""

    def edit(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(content[: to(len(content))])

    return edit


def half_of_an_index(folder: Path) -> None:
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / WEIGHTS).rename(folder / names["a"])
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))


LIES: dict[str, tuple[Edit, str]] = {
    "width": (says("text_config", hidden_size=96), "hidden_size is 96"),
    "heads": (says("text_config", num_attention_heads=4, head_dim=32), "x head_dim is 128"),
    "kv heads": (says("text_config", num_key_value_heads=2), "num_key_value_heads x head_dim"),
    "mlp": (says("text_config", intermediate_size=256), "intermediate_size is 256"),
    "vocabulary": (says("text_config", vocab_size=1024), "vocab_size is 1024"),
    "layers": (says("text_config", num_hidden_layers=5), "num_hidden_layers is 5.*no layer 2"),
    "vision layers": (says("vision_config", depth=3), "depth is 3.* no layer of the vision"),
    "vision width": (says("vision_config", hidden_size=64), "has 32 rows, and hidden_size of vis"),
    "a layer less": (lacks("layers.0."), "num_hidden_layers is 2, and there is no layer 0"),
    "no tower": (lacks("visual."), "no vision tower"),
    "cut": (cut(lambda size: size - 100), f"{WEIGHTS}: it is 100 bytes shorter"),
    "cut in the header": (cut(lambda size: 100), "it ends within its header"),
    "empty": (cut(lambda size: 0), "it ends before its header"),
    "not fetched": (lambda folder: (folder / WEIGHTS).unlink(), r"no \*.safetensors"),
    "half": (half_of_an_index, "model-00002-of-00002.safetensors is missing"),
    "a pointer": (
        lambda folder: (folder / WEIGHTS).write_text(
            "version https://git-lfs.github.com/spec/v1\n"
        ),
        "it ends within its header, or has none",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_with_the_path_and_what_disagrees(copy: Path, lie: str) -> None:
    edit, told = LIES[lie]
    edit(copy)
    with pytest.raises(
        ValueError, match=rf"the weights of {re.escape(str(copy))} .*{told}"
    ) as raised:
        check_weights(str(copy))
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=family.name, marks=[] if family.quick else pytest.mark.slow)
        for family in FAMILIES
    ],
)
def test_checkpoints_of_every_family_are_as_they_say(family: Any, tmp_path: Path) -> None:
    for name in ("target", "draft"):
        check_weights(str(getattr(family, name)(tmp_path / name)), trust_remote_code=True)


def test_so_are_llava_and_text_models(text_draft: Path, vl_target: Path, tmp_path: Path) -> None:
    check_weights(str(llava_checkpoints.llava_onevision(tmp_path / "llava")))
    check_weights(str(text_draft))
    check_weights(str(vl_target))


def test_layers_that_are_not_counted_are_allowed(copy: Path) -> None:
    says("text_config", num_hidden_layers=1)(copy)
    check_weights(str(copy))


def test_quantised_weights_have_widths_of_their_own(copy: Path) -> None:
    says("text_config", hidden_size=96)(copy)
    content = json.loads((copy / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (copy / "config.json").write_text(json.dumps(content))
    check_weights(str(copy))


def test_other_formats_and_names_of_the_hub_are_left_to_sglang(copy: Path) -> None:
    (copy / WEIGHTS).rename(copy / "pytorch_model.bin")
    check_weights(str(copy))
    check_weights("nobody/nothing")
