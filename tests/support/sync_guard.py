"""Refuses tensor operations for which the host would wait for a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_READS_A_VALUE = {
    _aten._local_scalar_dense,
    _aten.item,
    _aten.is_nonzero,
    _aten.equal,
    _aten.nonzero,
    _aten.masked_select,
    _aten._unique2,
    _aten.unique_consecutive,
    _aten.unique_dim,
    _aten.bincount,
    _aten.histc,
}
_INDEXES = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}


class HostSyncError(AssertionError):
    """An operation would have made the host wait for the device."""


class NoHostSync(TorchDispatchMode):
    """Raises `HostSyncError` for operations that copy a value, or a size, to the host.

    These are reads of a scalar, results whose shape depends on values, indexing with a mask, and
    copies between devices that do not ask for ``non_blocking``. ``tolist`` and ``numpy`` of a CPU
    tensor do not pass here; fake tensors refuse them.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        packet = func.overloadpacket
        if packet in _READS_A_VALUE:
            raise HostSyncError(f"{func} reads a value")
        if packet in _INDEXES and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            raise HostSyncError(f"{func} with a mask has a result of unknown size")
        if packet is _aten.repeat_interleave and named.get("output_size") is None:
            raise HostSyncError(f"{func} has a result of unknown size")
        result = func(*args, **named)
        if packet is _aten._to_copy and args[0].device != result.device:
            _check_copy(func, named.get("non_blocking", False))
        elif packet in (_aten.copy_, _aten.copy) and args[0].device != args[1].device:
            _check_copy(func, args[2] if len(args) > 2 else named.get("non_blocking", False))
        return result


def _check_copy(func: Any, non_blocking: bool) -> None:
    if not non_blocking:
        raise HostSyncError(f"{func} between devices blocks")
