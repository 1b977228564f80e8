"""SGLang's arguments as they would be resolved on a GPU, on a machine without one.

    python -m tests.support.pretended_gpu 9.0 < command-lines.json

reads a list of argument lists and prints a list of what became of each: the resolved fields, or
``{"error": message}``. A process of its own, because torch and ``sgl_kernel`` (which links the
driver's library) are replaced as far as argument resolution touches them; nothing is computed.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import subprocess
import sys
import types
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar
from unittest import mock

FIELDS = (
    "device",
    "attention_backend",
    "prefill_attention_backend",
    "decode_attention_backend",
    "speculative_draft_attention_backend",
    "mm_attention_backend",
    "speculative_num_steps",
    "speculative_eagle_topk",
    "speculative_num_draft_tokens",
    "max_running_requests",
    "enable_mixed_chunk",
    "disable_overlap_schedule",
    "page_size",
    "cuda_graph_config",
    "mem_fraction_static",
)
GIB = 2**30
COMPILER = "SPECVLM_TEST_WITHOUT_COMPILER"
"""Set, FlashInfer has no kernels."""


def resolve(
    capability: str, lines: Sequence[Sequence[str]], **environment: str
) -> list[dict[str, Any]]:
    """What these command lines resolve to on one GPU of ``capability``, such as ``"9.0"``."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.pretended_gpu", capability],
        input=json.dumps([list(line) for line in lines]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


class _Anything(types.ModuleType):
    """A package whose every attribute is a mock."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, mock.MagicMock())
        return getattr(self, name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname.split(".")[0] == "sgl_kernel":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _pretend(major: int, minor: int) -> None:
    import torch

    properties = types.SimpleNamespace(
        name="pretended",
        major=major,
        minor=minor,
        total_memory=80 * GIB,
        multi_processor_count=132,
        warp_size=32,
    )
    replaced = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda *_, **__: (major, minor),
        "get_device_properties": lambda *_, **__: properties,
        "get_device_name": lambda *_, **__: properties.name,
        "mem_get_info": lambda *_, **__: (79 * GIB, 80 * GIB),
    }
    for name, function in replaced.items():
        setattr(torch.cuda, name, function)
    sys.meta_path.insert(0, _Finder())
    from specvlm_sglang.host import attention_default

    # Whatever compilers this machine has.
    attention_default.kernels_are_there = lambda: COMPILER not in os.environ


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


def main() -> None:
    """Resolve what stands on the standard input."""
    major, minor = (int(part) for part in sys.argv[1].split("."))
    _pretend(major, minor)
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    load_plugins()
    found: list[dict[str, Any]] = []
    for line in json.load(sys.stdin):
        try:
            arguments = prepare_server_args(line)
            arguments.resolve_once()
        except ValueError as error:
            found.append({"error": str(error)})
        else:
            view = resolving_view(arguments)
            found.append({name: _plain(getattr(view, name)) for name in FIELDS})
    print(json.dumps(found, default=str))


if __name__ == "__main__":
    main()
