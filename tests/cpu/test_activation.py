"""When our CPU platform takes over, and what it does to the process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch

from specvlm_sglang import plugin
from specvlm_sglang.cpu import activation


def say(value: bool) -> SimpleNamespace:
    return SimpleNamespace(is_available=lambda: value)


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither an accelerator nor a wish, whatever this machine has."""
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("npu", "musa"):
        monkeypatch.delattr(torch, name, raising=False)
    activation.is_wanted.cache_clear()
    yield
    activation.is_wanted.cache_clear()


def test_a_machine_without_an_accelerator_gets_our_platform() -> None:
    assert activation.is_wanted()
    assert plugin.activate_cpu_platform() == "specvlm_sglang.cpu.platform.TorchCpuPlatform"


@pytest.mark.parametrize("device", ["cuda", "xpu", "mps", "npu", "musa"])
def test_where_an_accelerator_is_sglangs_platform_stays(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = torch.backends if device == "mps" else torch
    monkeypatch.setattr(owner, device, say(True), raising=False)
    assert not activation.is_wanted()
    pin_memory = torch.Tensor.pin_memory
    assert plugin.activate_cpu_platform() is None
    assert torch.Tensor.pin_memory is pin_memory


@pytest.mark.parametrize("device", ["npu", "musa"])
def test_an_accelerators_package_without_its_device_does_not_count(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, device, say(False), raising=False)
    assert activation.is_wanted()


@pytest.mark.parametrize(("value", "wanted"), [("1", False), ("0", True)])
def test_who_asks_for_sglangs_own_cpu_engine_gets_it(
    value: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", value)
    assert activation.is_wanted() is wanted


@pytest.fixture
def own_pin_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own method, which raises without a driver; put back as it was at the end."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch._C.TensorBase.pin_memory)


@pytest.mark.usefixtures("own_pin_memory")
def test_pin_memory_is_harmless_once_the_process_is_prepared() -> None:
    activation.prepare_process()
    prepared = torch.Tensor.pin_memory
    tensor = torch.arange(6).reshape(2, 3)
    assert tensor.pin_memory() is tensor
    assert tensor.pin_memory("cuda") is tensor
    assert tensor[:, 1].pin_memory(device=None).tolist() == [1, 4]
    activation.prepare_process()
    assert torch.Tensor.pin_memory is prepared


@pytest.mark.usefixtures("own_pin_memory")
@pytest.mark.parametrize(("given", "left"), [(None, "1"), ("1", "1"), ("0", "0")])
def test_the_compiler_is_off_for_this_process_and_its_children_unless_the_user_says_otherwise(
    given: str | None, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Also set where it is deleted, so that what is written is undone.
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", given or "")
    if given is None:
        monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    loaded = ModuleType("torch._dynamo.config")
    loaded.disable = False
    monkeypatch.setitem(sys.modules, "torch._dynamo.config", loaded)
    activation.prepare_process()
    assert os.environ["TORCHDYNAMO_DISABLE"] == left
    assert loaded.disable is (left == "1")


@pytest.mark.usefixtures("own_pin_memory")
def test_preparing_does_not_import_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.delitem(sys.modules, "torch._dynamo.config", raising=False)
    activation.prepare_process()
    assert "torch._dynamo.config" not in sys.modules
