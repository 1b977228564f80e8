"""Runs GPU code without a GPU: ``cuda`` tensors without contents, host tensors as always.

Only in a process of its own (`tests.support.fake_cuda_round`): torch and Triton are patched for
good. A `FakeCuda` knows for each operation who asked for it, and notes what makes the host wait,
what is launched, and what a kernel is handed that does not lie on the device. Operations on tensors
of two devices fail by themselves, as they do on a GPU. What is read from the device is 0.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import CodeType, FrameType
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.support import pretended_gpu

_aten = torch.ops.aten
_READS = {_aten._local_scalar_dense, _aten.equal, _aten.is_nonzero}
_SIZED_BY_VALUES = {
    _aten.nonzero,
    _aten.masked_select,
    _aten._unique2,
    _aten.unique_consecutive,
    _aten.unique_dim,
}
_INDEXES = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}
_LAUNCHES_NOTHING = {
    torch.ops.prim.device,
    _aten._unsafe_view,
    _aten.alias,
    _aten.as_strided,
    _aten.detach,
    _aten.empty,
    _aten.empty_like,
    _aten.expand,
    _aten.lift_fresh,
    _aten.new_empty,
    _aten.permute,
    _aten.select,
    _aten.slice,
    _aten.split,
    _aten.split_with_sizes,
    _aten.squeeze,
    _aten.t,
    _aten.transpose,
    _aten.unbind,
    _aten.unsqueeze,
    _aten.view,
}
_PACKAGES = ("/specvlm_sglang/", "/sglang/")


class Place(NamedTuple):
    """A line of one of the two packages.

    Attributes
    ----------
    ours
        Whether it is this project's.
    where
        ``file:function``.
    line
        Its number.
    text
        Its source.
    """

    ours: bool
    where: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.where}:{self.line} {self.text}"


@cache
def _package_of(code: CodeType) -> tuple[bool, str] | None:
    """Whether a function is ours, and its ``file:function``; None where it is neither's."""
    for package in _PACKAGES:
        before, found, inside = code.co_filename.rpartition(package)
        if found and not before.endswith("/tests"):
            return package == _PACKAGES[0], f"{inside}:{code.co_name}"
    return None


def callers() -> tuple[Place | None, Place | None]:
    """The nearest line of either package, and the nearest of ours."""
    nearest: Place | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        known = _package_of(frame.f_code)
        if known is not None and (nearest is None or known[0]):
            text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            place = Place(*known, frame.f_lineno, text)
            nearest = nearest or place
            if place.ours:
                return nearest, place
        frame = frame.f_back
    return nearest, None


@dataclass
class Seen:
    """What happened in one stretch of work.

    Attributes
    ----------
    waits
        ``(what, nearest line, nearest line of ours)``.
    ours
        ``(operation or kernel, line)`` for each launch whose nearest line is ours.
    launches
        Operations and kernels on the device, anyone's.
    mixes
        Kernels that were handed memory of the host.
    """

    waits: list[tuple[str, Place | None, Place | None]] = field(default_factory=list)
    ours: list[tuple[str, Place]] = field(default_factory=list)
    launches: int = 0
    mixes: list[str] = field(default_factory=list)


class _WithoutDevice(FakeTensorMode):
    avoid_device_init = property(lambda self: True)  # type: ignore[assignment]


class FakeCuda(TorchDispatchMode):
    """What touches ``cuda`` is faked and noted, what stays on the host is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Seen()
        self._fake = _WithoutDevice(allow_non_fake_inputs=True)
        self._pinned: dict[int, torch.UntypedStorage] = {}
        self._read: set[int] | None = None
        self._made: list[torch.Tensor] = []

    def start(self) -> Seen:
        """Note into a new `Seen` from now on."""
        self.seen = Seen()
        return self.seen

    def pin(self, host: torch.Tensor) -> torch.Tensor:
        """A copy in memory that a device can read while the host goes on."""
        with _disable_current_modes():
            pinned = host.clone()
        return self.note_pinned(pinned)

    def note_pinned(self, host: torch.Tensor) -> torch.Tensor:
        """This tensor's memory is pinned."""
        storage = host.untyped_storage()
        # Held, so that no other storage gets its address.
        self._pinned[storage.data_ptr()] = storage
        return host

    @contextmanager
    def capturing(self, given: Sequence[torch.Tensor]) -> Iterator[set[int]]:
        """Within this context note the addresses that are read, beside those of ``given``.

        A CUDA graph would read the same ones for ever, and launch all of it at once: what is ours
        in it is not counted.
        """
        self._read, self._made = set(), list(given)
        try:
            yield self._read
        finally:
            self._read, self._made = None, []

    def _note_reads(self, tensors: Sequence[torch.Tensor], result: Any) -> None:
        if self._read is None:
            return
        own = {one.data_ptr() for one in self._made}
        self._read |= {one.data_ptr() for one in tensors if one.is_cuda} - own
        # Held, so that nothing else gets their addresses.
        self._made += [one for one in _tensors([result]) if one.is_cuda]

    def wait(self, what: str) -> None:
        """The host would wait here."""
        self.seen.waits.append((what, *callers()))

    def launch(self, name: str) -> None:
        """Something is queued on the device."""
        self.seen.launches += 1
        if self._read is not None:
            return
        nearest, _ = callers()
        if nearest is not None and nearest.ours:
            self.seen.ours.append((name, nearest))

    def kernel(self, name: str, arguments: Sequence[Any]) -> None:
        """A kernel that is not torch's is launched."""
        self.launch(name)
        for place, value in enumerate(arguments):
            if isinstance(value, torch.Tensor) and not value.is_cuda:
                by = " <- ".join(str(line) for line in callers() if line)
                self.seen.mixes.append(f"{name}, argument {place} on {value.device} | {by}")

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        packet = func.overloadpacket
        tensors = list(_tensors((*args, *named.values())))
        device = named.get("device")
        on_device = any(isinstance(one, FakeTensor) for one in tensors) or (
            device is not None and torch.device(device).type == "cuda"
        )
        if not on_device:
            return func(*args, **named)
        if packet in _READS:
            self.wait(f"{packet} reads a value")
            return _zero(args[0]) if packet is _aten._local_scalar_dense else False
        if packet in _SIZED_BY_VALUES:
            self.wait(f"{packet} has a size that depends on values")
            return self._as_large_as_can_be(packet, args[0])
        if packet in _INDEXES and args[0].is_cuda:
            args = self._checked_indices(packet, args)
        if packet is _aten.repeat_interleave and named.get("output_size") is None:
            self.wait(f"{packet} has a size that depends on values")
        if packet is _aten._to_copy and args[0].is_cuda and str(device) == "cpu":
            return self._to_host(args[0], named)
        with self._fake:
            result = func(*args, **named)
        self._note_reads(tensors, result)
        if packet is _aten._to_copy and not args[0].is_cuda and result.is_cuda:
            self._upload(args[0], named.get("non_blocking", False))
        elif packet is _aten.copy_ and args[0].device.type != args[1].device.type:
            later = args[2] if len(args) > 2 else named.get("non_blocking", False)
            if args[0].is_cuda:
                self._upload(args[1], later)
            elif not later:
                self.wait(f"a copy of {_shape(args[1])} to the host")
        if packet not in _LAUNCHES_NOTHING:
            self.launch(str(packet))
        return result

    def _upload(self, host: torch.Tensor, non_blocking: bool) -> None:
        if not non_blocking:
            self.wait(f"a copy of {_shape(host)} to the device")
        elif host.untyped_storage().data_ptr() not in self._pinned:
            self.wait(f"a copy of {_shape(host)} to the device, out of pageable memory")

    def _to_host(self, source: torch.Tensor, named: Mapping[str, Any]) -> torch.Tensor:
        if not named.get("non_blocking", False):
            self.wait(f"a copy of {_shape(source)} to the host")
        with _disable_current_modes():
            return torch.zeros(source.shape, dtype=named.get("dtype") or source.dtype)

    def _checked_indices(self, packet: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        indices = list(args[1])
        for place, index in enumerate(indices):
            if index is None:
                continue
            if not index.is_cuda:
                self.wait(f"{packet} by host indices")
            if index.dtype in (torch.bool, torch.uint8):
                self.wait(f"{packet} by a mask has a size that depends on values")
                # As if all were set.
                kept = [index.new_empty(index.numel(), dtype=torch.int64)] * index.dim()
                indices[place : place + 1] = kept
        return (args[0], indices, *args[2:])

    def _as_large_as_can_be(self, packet: Any, source: torch.Tensor) -> Any:
        with self._fake:
            if packet is _aten.nonzero:
                return source.new_empty((source.numel(), source.dim()), dtype=torch.int64)
            if packet is _aten.masked_select:
                return source.new_empty(source.numel())
            places = source.new_empty(source.numel(), dtype=torch.int64)
            return source.new_empty(source.numel()), places, places


def _shape(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of {tensor.dim()} dimensions"


def _zero(tensor: torch.Tensor) -> bool | float | int:
    if tensor.dtype == torch.bool:
        return False
    return 0.0 if tensor.is_floating_point() else 0


def _tensors(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


class _Stream:
    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def pretend(capability: tuple[int, int]) -> FakeCuda:
    """Make torch and Triton of this process believe in one GPU; before SGLang is imported.

    Returns
    -------
    FakeCuda
        To be entered for as long as tensors are used.
    """
    pretended_gpu._pretend(*capability)
    mode = FakeCuda()

    class Event:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def record(self, *_: Any) -> None:
            pass

        def wait(self, *_: Any) -> None:
            pass

        def query(self) -> bool:
            return True

        def synchronize(self) -> None:
            mode.wait("an event")

    replaced: dict[str, Any] = {
        "Event": Event,
        "Stream": _Stream,
        "current_stream": _Stream,
        "is_initialized": lambda: True,
        "synchronize": lambda *_: mode.wait("the whole device"),
        "_lazy_init": lambda: None,
    }
    for name, function in replaced.items():
        setattr(torch.cuda, name, function)
    tensor: Any = torch.Tensor
    tensor.record_stream = lambda *_: None
    tensor.pin_memory = lambda host, *_: mode.pin(host)
    fake: Any = FakeTensor
    fake.data_ptr = lambda one: one.untyped_storage()._cdata
    for name in ("empty", "full", "ones", "tensor", "zeros"):
        setattr(torch, name, _pinning(mode, getattr(torch, name)))
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._set_only_lift_cpu_tensors(True)
    _record_kernels(mode)
    return mode


def _pinning(mode: FakeCuda, function: Any) -> Any:
    def create(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Any:
        made = function(*args, **kwargs)
        return mode.note_pinned(made) if pin_memory and made.device.type == "cpu" else made

    return create


def _record_kernels(mode: FakeCuda) -> None:
    from triton.runtime.jit import JITFunction

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        mode.kernel(self.fn.__name__, [*args, *kwargs.values()])

    JITFunction.run = run


class Module:
    """Stands for a compiled extension: each of its functions is a launch, and returns a mock."""

    def __init__(self, mode: FakeCuda, name: str) -> None:
        self._mode, self._name = mode, name

    def __getattr__(self, function: str) -> Any:
        if function.startswith("__"):
            raise AttributeError(function)

        def launch(*args: Any, **kwargs: Any) -> Any:
            # Some of them plan on the host, from memory of the host.
            self._mode.launch(f"{self._name}.{function}")
            return mock.MagicMock()

        return launch


@contextmanager
def on_the_host() -> Iterator[None]:
    """Within this context host tensors are made and read without being noted."""
    with _disable_current_modes():
        yield
