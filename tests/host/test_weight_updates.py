"""An update that fails leaves the served weights, and the path that they came from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from specvlm_sglang.host import weight_updates
from specvlm_sglang.host.weight_updates import difference, shapes_of


def write(folder: Path, *names: str, width: int = 4, **more: torch.Tensor) -> Path:
    folder.mkdir()
    tensors = {name: torch.zeros(3, width) for name in names} | more
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_shapes_are_read_without_the_weights(tmp_path: Path) -> None:
    assert shapes_of(write(tmp_path / "a", "one", "two")) == {"one": (3, 4), "two": (3, 4)}


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"none" * 9])
def test_a_file_that_is_no_checkpoint_has_no_shapes(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert shapes_of(tmp_path) is None


def test_a_tied_output_layer_and_other_names_make_no_difference() -> None:
    served = {"a": (3, 4), "lm_head.weight": (5, 4)}
    assert difference(served, {"a": (3, 4)}) is None
    assert difference(served, {"model.language_model.a": (3, 4)}) is None


def test_another_shape_and_missing_weights_are_told() -> None:
    served = {"a": (3, 4), "b": (3, 4)}
    assert difference(served, {"a": (3, 8), "b": (3, 4)}) == "a is [3, 8], and [3, 4] is served"
    assert difference(served, {"a": (3, 4)}) == "it lacks b"
    assert difference({"a": (3, 4)}, {**served, "c": (1,)}) == "there is no room for b and 1 more"
    assert difference(served, {"a": (3, 4), "c": (3, 4)}) == "it lacks b"


class Updater:
    """SGLang's updater, whose loading fails or not; it remembers what it loaded."""

    def __init__(self, served: Path, *failing: Exception | str) -> None:
        self.model_config = SimpleNamespace(model_path=str(served))
        self.loaded: list[tuple[str, str]] = []
        self._failing = list(failing)

    def get_model_runner(self) -> Any:
        return SimpleNamespace(load_config=SimpleNamespace(load_format="auto"))

    def original(self, model_path: str, load_format: str) -> tuple[bool, str]:
        self.model_config.model_path = model_path
        failure = self._failing.pop(0) if self._failing else None
        if isinstance(failure, Exception):
            raise failure
        if failure is not None:
            return False, failure
        self.loaded.append((model_path, load_format))
        return True, "Succeeded"


def update(updater: Updater, path: Path | str) -> tuple[bool, str]:
    return weight_updates._restoring(Updater.original)(updater, str(path), "auto")


def test_weights_of_the_same_shapes_are_loaded(tmp_path: Path) -> None:
    served, new = write(tmp_path / "a", "x"), write(tmp_path / "b", "x")
    updater = Updater(served)
    assert update(updater, new) == (True, "Succeeded")
    assert updater.model_config.model_path == str(new)


@pytest.mark.parametrize("width", [8, None])
def test_other_shapes_and_missing_folders_are_refused_before_anything_is_loaded(
    width: int | None, tmp_path: Path
) -> None:
    served = write(tmp_path / "a", "x")
    new = tmp_path / "b"
    if width is not None:
        write(new, "x", width=width)
    updater = Updater(served)
    success, message = update(updater, new)
    assert not success
    assert message.startswith(f"{new} cannot replace {served}: ")
    assert updater.loaded == []
    assert updater.model_config.model_path == str(served)


@pytest.mark.parametrize(
    "failure",
    [RuntimeError("no such key"), "Failed to update: no such key\nRolling back to it."],
)
def test_after_a_failure_the_served_checkpoint_is_loaded_again(
    failure: Exception | str, tmp_path: Path
) -> None:
    served, new = write(tmp_path / "a", "x"), write(tmp_path / "b", "x")
    updater = Updater(served, failure)
    success, message = update(updater, new)
    assert not success
    assert f"{served} is served as before" in message
    assert message.endswith("no such key")
    assert updater.loaded == [(str(served), "auto")]
    assert updater.model_config.model_path == str(served)


def test_a_name_that_cannot_be_fetched_changes_nothing(tmp_path: Path) -> None:
    served = write(tmp_path / "a", "x")
    updater = Updater(served, "Failed to get weights iterator: offline.")
    success, message = update(updater, "nobody/nothing")
    assert not success
    assert "offline" in message
    assert updater.loaded == []
    assert updater.model_config.model_path == str(served)


def test_where_the_served_checkpoint_is_gone_too_that_is_said(tmp_path: Path) -> None:
    served, new = write(tmp_path / "a", "x"), write(tmp_path / "b", "x")
    updater = Updater(served, RuntimeError("broken"), RuntimeError("gone"))
    success, message = update(updater, new)
    assert not success
    assert "restart the server" in message


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"backend": "nccl"}, "backend='nccl' needs GPUs"),
        ({"rank_offset": 2}, "rank_offset=2"),
        ({"rank_offset": -1}, "rank_offset=-1"),
        ({"group_name": "old"}, "group_name='old' is in use"),
    ],
)
def test_a_group_that_cannot_meet_is_refused_at_once(fields: dict[str, Any], says: str) -> None:
    updater = SimpleNamespace(device="cpu", tp_rank=0, _model_update_group={"old": None})
    given = {"rank_offset": 1, "world_size": 2, "group_name": "g", "backend": "gloo", **fields}
    init = weight_updates._with_a_backend(lambda *args: (True, "met"))
    success, message = init(updater, "127.0.0.1", 1, **given)
    assert not success
    assert says in message


def test_a_session_of_no_model_is_refused() -> None:
    begin = weight_updates._of_a_model(lambda self, request: "begun")
    manager = SimpleNamespace(_select_runners=lambda selector: [1] if selector == "all" else [])
    assert begin(manager, SimpleNamespace(selector="all")) == "begun"
    with pytest.raises(ValueError, match="selector='draft' chooses no model"):
        begin(manager, SimpleNamespace(selector="draft"))
