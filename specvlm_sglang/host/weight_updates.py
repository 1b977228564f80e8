"""Updates of the weights of a running server that fail leave it as it was.

SGLang's roll-back rereads the path that has just failed, and what is raised there ends the
scheduler. Checkpoints of other shapes are refused before anything is written; where loading fails
later, the checkpoint that was served is loaded again.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function
from specvlm_sglang.host.refusals import reason_of

_RUNNER = "sglang.srt.model_executor.model_runner_components.weight_updater"
_MANAGER = "sglang.srt.managers.scheduler_components.weight_updater"
_MAX_HEADER = 100 << 20
_LENGTH = struct.Struct("<Q")
_PREFIXES = ("model", "language_model", "visual")
_OUTPUT_LAYER = "lm_head.weight"
# torch waits half an hour, in which the scheduler answers nobody.
GROUP_SECONDS = 120

Shapes = Mapping[str, tuple[int, ...]]


def install_in_scheduler() -> None:
    """Guard the updates of this process; idempotent. Needs `refusals`, which answers."""
    contract.require("weight updates")
    replace_function(_RUNNER, "WeightUpdater.update_weights_from_disk", _restoring)
    replace_function(_RUNNER, "WeightUpdater.init_weights_update_group", _with_a_backend)
    replace_function("sglang.srt.utils.common", "init_custom_process_group", _within_minutes)
    replace_function(_MANAGER, "SchedulerWeightUpdaterManager.begin_weight_update", _of_a_model)


def header_of(file: Path) -> dict[str, Any]:
    """A safetensors file's entries by tensor name, ``dtype``, ``shape`` and ``data_offsets`` each.

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        It is no safetensors file, or is shorter or longer than its entries say.
    """
    with file.open("rb") as content:
        size = file.stat().st_size
        if size < _LENGTH.size:
            raise ValueError("it ends before its header")
        (length,) = _LENGTH.unpack(content.read(_LENGTH.size))
        if length > min(_MAX_HEADER, size - _LENGTH.size):
            raise ValueError("it ends within its header, or has none")
        try:
            entries = dict(json.loads(content.read(length)))
            entries.pop("__metadata__", None)
            stop = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError("its header cannot be read") from error
    missing = _LENGTH.size + length + stop - size
    if missing:
        raise ValueError(
            f"it is {abs(missing)} bytes {'shorter' if missing > 0 else 'longer'}"
            " than its header says"
        )
    return entries


def shapes_of(checkpoint: str | Path) -> Shapes | None:
    """Shapes of a directory's safetensors by name; None where it has none that can be read."""
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(Path(checkpoint).glob("*.safetensors")):
        try:
            header = header_of(file)
            found |= {name: tuple(entry["shape"]) for name, entry in header.items()}
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return found or None


def difference(served: Shapes, new: Shapes) -> str | None:
    """How weights of the shapes ``new`` do not fit where ``served`` are; None where they do.

    SGLang passes over names that it does not know, and keeps what it was not given. Prefixes may
    differ (transformers has renamed them), and an output layer that is tied to the embeddings may
    be left out.
    """
    there, here = (
        {_without_prefixes(name): shape for name, shape in shapes.items()}
        for shapes in (served, new)
    )
    for name in sorted(there.keys() & here.keys()):
        if there[name] != here[name]:
            return f"{name} is {list(here[name])}, and {list(there[name])} is served"
    for one, other, says in ((there, here, "it lacks"), (here, there, "there is no room for")):
        missing = sorted(one.keys() - other.keys() - {_OUTPUT_LAYER})
        if missing:
            return f"{says} {missing[0]}" + (f" and {len(missing) - 1} more" * (len(missing) > 1))
    return None


def _without_prefixes(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _PREFIXES)


def _restoring(original: Callable[..., tuple[bool, str]]) -> Callable[..., tuple[bool, str]]:
    def update_weights_from_disk(
        self: Any, model_path: str, load_format: str, *args: Any, **kwargs: Any
    ) -> tuple[bool, str]:
        config = self.model_config
        served = config.model_path
        reason = _why_not(served, model_path)
        if reason is not None:
            return False, f"{model_path} cannot replace {served}: {reason}"
        try:
            success, message = original(self, model_path, load_format, *args, **kwargs)
            raised = False
        except Exception as error:
            # Its roll-back failed too: weights may have been written.
            success, message, raised = False, str(error), True
        if success:
            return success, message
        reason = reason_of(message)
        config.model_path = served
        if raised or "Rolling back" in message:
            restored, why = _load(original, self, served)
            if not restored:
                return False, f"{reason}; {served} cannot be read again ({why}): restart the server"
        return False, f"{model_path} was not loaded, {served} is served as before: {reason}"

    return update_weights_from_disk


def _why_not(served: str, new: str) -> str | None:
    if not new:
        return "model_path is empty"
    if Path(new).is_absolute() and not Path(new).is_dir():
        return "there is no such directory"
    if not Path(new).is_dir():
        # A name of the hub, which SGLang fetches.
        return None
    old_shapes, new_shapes = shapes_of(served), shapes_of(new)
    if old_shapes is None or new_shapes is None:
        return None
    return difference(old_shapes, new_shapes)


def _load(original: Callable[..., tuple[bool, str]], updater: Any, path: str) -> tuple[bool, str]:
    try:
        return original(updater, path, updater.get_model_runner().load_config.load_format)
    except Exception as error:
        return False, reason_of(error)


def _within_minutes(original: Callable[..., Any]) -> Callable[..., Any]:
    def init_custom_process_group(
        backend: Any = None, init_method: Any = None, timeout: Any = None, **kwargs: Any
    ) -> Any:
        timeout = timedelta(seconds=GROUP_SECONDS) if timeout is None else timeout
        return original(backend, init_method, timeout, **kwargs)

    return init_custom_process_group


def _with_a_backend(original: Callable[..., tuple[bool, str]]) -> Callable[..., tuple[bool, str]]:
    def init_weights_update_group(
        self: Any,
        master_address: str,
        master_port: int,
        rank_offset: int,
        world_size: int,
        group_name: str,
        backend: str = "nccl",
    ) -> tuple[bool, str]:
        if backend == "nccl" and self.device == "cpu":
            return False, "backend='nccl' needs GPUs: use backend='gloo'"
        rank = rank_offset + self.tp_rank
        if not 0 <= rank < world_size:
            return False, f"rank_offset={rank_offset} must be at least 0 and below {world_size=}"
        if group_name in self._model_update_group:
            return False, f"group_name={group_name!r} is in use: destroy that group first"
        return original(
            self, master_address, master_port, rank_offset, world_size, group_name, backend
        )

    return init_weights_update_group


def _of_a_model(original: Callable[..., Any]) -> Callable[..., Any]:
    def begin_weight_update(self: Any, recv_req: Any) -> Any:
        if not self._select_runners(recv_req.selector):
            raise ValueError(
                f"selector={recv_req.selector!r} chooses no model: updated weights are the "
                "target's, and the draft keeps its own"
            )
        return original(self, recv_req)

    return begin_weight_update
