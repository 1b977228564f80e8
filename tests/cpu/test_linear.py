"""bfloat16 weights in oneDNN's layout give the same bits as plain ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from specvlm_sglang.cpu import linear
from tests.support.hooks import unhooked

MODULE = "sglang.srt.layers.quantization.unquant"

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this CPU has no bfloat16 matrix products in oneDNN, so nothing is packed",
)


@pytest.fixture
def method() -> Iterator[Any]:
    """SGLang's linear method with our hooks."""
    with unhooked(
        (MODULE, "UnquantizedLinearMethod.apply"),
        (MODULE, "UnquantizedLinearMethod.process_weights_after_loading"),
        (MODULE, "UnquantizedLinearMethod.restore_weights_before_loading"),
    ):
        linear.install()
        from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod

        yield UnquantizedLinearMethod()


def layer(kind: str, dtype: torch.dtype) -> Any:
    """A layer of SGLang's class ``kind`` with random weights, without its process groups."""
    from sglang.srt.layers import linear as layers

    made = torch.nn.Module.__new__(getattr(layers, kind))
    torch.nn.Module.__init__(made)
    weight = torch.randn(96, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    made.weight = torch.nn.Parameter(weight, requires_grad=False)
    made.weight.output_dim = 0
    return made


@pytest.mark.parametrize("rows", [(1,), (8,), (2, 5), (300,)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_packed_layers_compute_the_same_bits(
    method: Any, rows: tuple[int, ...], with_bias: bool
) -> None:
    made = layer("RowParallelLinear", torch.bfloat16)
    x = torch.randn(*rows, 40).bfloat16()
    bias = torch.randn(96).bfloat16() if with_bias else None
    expected = torch.nn.functional.linear(x, made.weight, bias)
    method.process_weights_after_loading(made)
    assert made.weight.is_mkldnn
    assert made.weight.shape == (96, 40)
    assert made.weight.output_dim == 0
    with torch.inference_mode():
        assert torch.equal(method.apply(made, x, bias), expected)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("ColumnParallelLinear", torch.float32), ("ReplicatedLinear", torch.bfloat16)],
)
def test_float32_and_replicated_layers_keep_their_weights(
    method: Any, kind: str, dtype: torch.dtype
) -> None:
    made = layer(kind, dtype)
    method.process_weights_after_loading(made)
    assert not made.weight.is_mkldnn


def test_a_second_loading_leaves_packed_weights_alone(method: Any) -> None:
    made = layer("ColumnParallelLinear", torch.bfloat16)
    method.process_weights_after_loading(made)
    packed = made.weight
    method.process_weights_after_loading(made)
    assert made.weight is packed


def test_writing_into_packed_weights_is_an_error_and_no_silence(method: Any) -> None:
    made = layer("ColumnParallelLinear", torch.bfloat16)
    method.process_weights_after_loading(made)
    with pytest.raises(RuntimeError):
        made.weight.data.copy_(torch.zeros(96, 40, dtype=torch.bfloat16))


def test_an_update_finds_plain_weights_and_leaves_packed_ones(method: Any) -> None:
    made = layer("ColumnParallelLinear", torch.bfloat16)
    before = made.weight.data.clone()
    method.process_weights_after_loading(made)
    method.restore_weights_before_loading(made)
    assert not made.weight.is_mkldnn
    assert made.weight.output_dim == 0
    assert torch.equal(made.weight, before)
    made.weight.data.copy_(2 * before)
    method.process_weights_after_loading(made)
    assert made.weight.is_mkldnn
    x = torch.randn(3, 40).bfloat16()
    with torch.inference_mode():
        expected = torch.nn.functional.linear(x, 2 * before)
        assert torch.equal(method.apply(made, x), expected)


def test_the_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(linear.SWITCH, "0")
    with unhooked((MODULE, "UnquantizedLinearMethod.apply")):
        linear.install()
        from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod

        assert not hasattr(UnquantizedLinearMethod.apply, "__specvlm_original__")


def test_another_value_of_the_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(linear.SWITCH, "yes")
    with pytest.raises(ValueError, match="SPECVLM_CPU_PACKED_WEIGHTS='yes' must be 0 or 1"):
        linear.install()
