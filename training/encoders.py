"""Encoders: normalised images (N, channels, H, W) to features (N, D).

An encoder is a trunk, whose output is the pooled features (N, P), and a linear projection to D. The refit of a head
may replace the projection (training/refit.py).
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

EncoderKind = Literal["six-conv", "mlp", "linear", "none"]


class Encoder(nn.Module):
    """A trunk and a projection: `forward` is their composition."""

    def __init__(self, trunk: nn.Module, projection: nn.Module):
        super().__init__()
        self.trunk = trunk
        self.projection = projection

    def forward(self, images: Tensor) -> Tensor:
        """(N, channels, H, W) to features (N, D)."""
        features: Tensor = self.projection(self.trunk(images))
        return features


def build_encoder(
    kind: EncoderKind,
    image_shape: tuple[int, int, int],
    dim: int,
    *,
    width: int = 64,
    hidden: Iterable[int] = (),
    dropout: float = 0.0,
) -> Encoder:
    """Build an encoder.

    Args:
        kind: `six-conv`, `mlp`, `linear` (a projection of the pixels) or `none` (the pixels themselves).
        image_shape: channels, height, width; `six-conv` takes 4 x 4 and up.
        dim: D. For `none` it must be the number of pixels.
        width: channels of the first convolutions of `six-conv`; the others have twice and four times as many.
        hidden: units per hidden layer of `mlp`.
        dropout: share of the hidden units of `mlp` that are dropped in training.

    Raises:
        ValueError: if the image is too small or `dim` does not fit.
    """
    channels, height, width_px = image_shape
    pixels = channels * height * width_px
    if kind == "six-conv":
        if min(height, width_px) < 4:
            raise ValueError(f"images for the six-conv encoder must be at least 4 x 4, got {height} x {width_px}")
        return Encoder(six_conv_trunk(channels, width), nn.Linear(4 * width, dim))
    if kind == "mlp":
        sizes = [pixels, *hidden]
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout))]
        return Encoder(nn.Sequential(nn.Flatten(), *layers), nn.Linear(sizes[-1], dim))
    if kind == "linear":
        return Encoder(nn.Flatten(), nn.Linear(pixels, dim))
    if dim != pixels:
        raise ValueError(f"dim must be the number of pixels ({pixels}) for the encoder none, got {dim}")
    return Encoder(nn.Flatten(), nn.Identity())


def six_conv_trunk(channels: int, width: int) -> nn.Sequential:
    """Six 3 x 3 convolutions, pooled after the second, the fourth and (globally) the sixth: (N, 4 * width).

    The encoder of Tezekbayev et al., arXiv 2601.01619, with width 64.
    """
    plan = [channels, width, width, 2 * width, 2 * width, 4 * width, 4 * width]
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise(plan)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        if index in (1, 3):
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
