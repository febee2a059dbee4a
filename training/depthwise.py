"""Depthwise convolutions with strides, in float32 where the CPU would learn slowly in bfloat16.

    with torch.autocast("cpu", torch.bfloat16), StridedDepthwiseInFloat32():
        features = encoder(images)

oneDNN has no kernel for the gradient of such a convolution by its input in bfloat16 and falls back to a reference:
52 ms on a core for 16 images of 144 channels and 32 x 32 pixels, against 2 ms in float32. What follows gets bfloat16.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class StridedDepthwiseInFloat32(TorchFunctionMode):
    """A context in which strided depthwise convolutions are computed in float32, whatever autocast says."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call `func`, as torch asks a mode to."""
        if func is torch.conv2d and not kwargs and _is_strided_depthwise(*args):
            images, weight, bias, *rest = args
            with torch.autocast(images.device.type, enabled=False):
                made: Tensor = func(images.float(), weight.float(), None if bias is None else bias.float(), *rest)
            return made.to(images.dtype)
        return func(*args, **(kwargs or {}))


def _is_strided_depthwise(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    return groups == images.shape[1] > 1 and stride not in (1, (1, 1), [1, 1])
