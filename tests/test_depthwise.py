"""Strided depthwise convolutions in float32 amid bfloat16."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from training.depthwise import StridedDepthwiseInFloat32

pytestmark = [pytest.mark.isa, pytest.mark.usefixtures("one_thread")]


def convolution(stride: int, groups: int, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(8, 8, 3, stride, 1, groups=groups, bias=bias)


def images() -> torch.Tensor:
    return torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.mark.parametrize("bias", [True, False])
def test_strided_depthwise_is_computed_in_float32_and_handed_on_in_bfloat16(bias: bool) -> None:
    layer = convolution(2, 8, bias)

    with torch.autocast("cpu", torch.bfloat16), StridedDepthwiseInFloat32():
        made = layer(images())

    expected = F.conv2d(images().float(), layer.weight, layer.bias, 2, 1, 1, 8).bfloat16()
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, expected)


@pytest.mark.parametrize(("stride", "groups"), [(1, 8), (2, 1), (2, 2)])
def test_other_convolutions_stay_as_autocast_has_them(stride: int, groups: int) -> None:
    layer = convolution(stride, groups)

    with torch.autocast("cpu", torch.bfloat16):
        plain = layer(images())
        with StridedDepthwiseInFloat32():
            made = layer(images())

    assert torch.equal(made, plain)


def test_gradients_are_those_of_float32() -> None:
    layer, seen = convolution(2, 8), images().float().requires_grad_()

    with torch.autocast("cpu", torch.bfloat16), StridedDepthwiseInFloat32():
        layer(seen).sum().backward()

    again, plain = images().float().requires_grad_(), convolution(2, 8)
    plain(again).sum().backward()
    assert torch.equal(seen.grad, again.grad)
    assert torch.equal(layer.weight.grad, plain.weight.grad)
