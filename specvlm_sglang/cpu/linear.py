"""Linear layers in bfloat16 whose weights lie in oneDNN's blocked layout.

``F.linear`` on a plain bfloat16 weight reorders it in every call, which costs a decode step nearly
half as much again. Weights are reordered once, after loading; results stay bit for bit the same.
An update of a running server's weights finds the plain layout, and leaves the other one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Parameter

from specvlm_sglang.host import contract
from specvlm_sglang.host.patching import replace_function

SWITCH = "SPECVLM_CPU_PACKED_WEIGHTS"
"""``0`` keeps the plain layout."""

_LINEAR_METHOD = "UnquantizedLinearMethod"
_MODULE = "sglang.srt.layers.quantization.unquant"


def install() -> None:
    """Pack the weights of SGLang's parallel linear layers, unless ``SWITCH`` or the CPU forbids.

    Raises
    ------
    ValueError
        The variable is neither 0 nor 1.
    """
    wanted = os.environ.get(SWITCH, "1")
    if wanted not in ("0", "1"):
        raise ValueError(f"{SWITCH}={wanted!r} must be 0 or 1")
    if wanted == "0" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    contract.require("linear")
    replace_function(_MODULE, f"{_LINEAR_METHOD}.process_weights_after_loading", _packing)
    replace_function(_MODULE, f"{_LINEAR_METHOD}.restore_weights_before_loading", _unpacking)
    replace_function(_MODULE, f"{_LINEAR_METHOD}.apply", _applying)


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Return bfloat16 ``[out, in]`` in oneDNN's layout: opaque, same shape and dtype."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def linear(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return ``x @ packed.T + bias``; ``x`` bfloat16 ``[..., in]``, ``packed`` as `pack` gives."""
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return result


def _packing(original: Callable[..., None]) -> Callable[..., None]:
    def process_weights_after_loading(self: Any, layer: torch.nn.Module) -> None:
        original(self, layer)
        weight: Any = layer.weight
        # A replicated layer may be a router, whose weight some models read themselves.
        if _is_parallel(layer) and weight.dtype == torch.bfloat16 and not weight.is_mkldnn:
            layer.weight = _in_place_of(weight, pack(weight.data))

    return process_weights_after_loading


def _unpacking(original: Callable[..., None]) -> Callable[..., None]:
    def restore_weights_before_loading(self: Any, layer: torch.nn.Module) -> None:
        original(self, layer)
        weight: Any = layer.weight
        if weight.is_mkldnn:
            layer.weight = _in_place_of(weight, weight.data.to_dense())

    return restore_weights_before_loading


def _in_place_of(weight: Any, data: torch.Tensor) -> Parameter:
    """A parameter of ``data`` with what SGLang has noted on ``weight``, such as its loader."""
    replacement = Parameter(data, requires_grad=False)
    replacement.__dict__.update(weight.__dict__)
    return replacement


def _applying(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def apply(
        self: Any, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        weight: Any = layer.weight
        if weight.is_mkldnn:
            return linear(x, weight, bias)
        return original(self, layer, x, bias)

    return apply


def _is_parallel(layer: torch.nn.Module) -> bool:
    from sglang.srt.layers.linear import ColumnParallelLinear, RowParallelLinear

    return isinstance(layer, ColumnParallelLinear | RowParallelLinear)
