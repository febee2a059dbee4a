"""Encoders: normalised images (N, channels, H, W) to features (N, D).

An encoder is a trunk, whose output is the pooled features (N, P), and a linear projection to D; without one the pooled
features are the features. The refit of a head may replace the projection (training/refit.py).
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from training.backbones import BACKBONES, SIDE, BackboneKind, build_backbone

EncoderKind = Literal["six-conv", "two-conv", "mlp", "linear", "none", BackboneKind]


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
    dim: int | None = None,
    *,
    width: int = 64,
    hidden: Iterable[int] = (),
    dropout: float = 0.0,
) -> Encoder:
    """Build an encoder.

    Args:
        kind: `six-conv`, `two-conv`, `mlp`, `linear` (a projection of the pixels), `none` (the pixels themselves) or a
            frozen backbone, its weights random (training/backbones.py).
        image_shape: channels, height, width; the convolutions take 4 x 4 and up, a backbone 3 x 224 x 224.
        dim: D, or None for the pooled features as they are. For `none` it must be the number of pixels, if given.
        width: channels of the first convolutions; the others have twice and four times as many.
        hidden: units per hidden layer of `mlp` and of `two-conv`.
        dropout: share of the hidden units that are dropped in training.

    Raises:
        ValueError: if the image's size or `dim` does not fit.
    """
    hidden = tuple(hidden)
    pooled = pooled_dim(kind, image_shape, width=width, hidden=hidden)
    if kind == "none" and dim not in (None, pooled):
        raise ValueError(f"dim must be the number of pixels ({pooled}) for the encoder none, got {dim}")
    projection = nn.Identity() if dim is None or kind == "none" else nn.Linear(pooled, dim)
    return Encoder(_trunk(kind, image_shape, width, hidden, dropout), projection)


def pooled_dim(kind: EncoderKind, image_shape: tuple[int, int, int], *, width: int, hidden: tuple[int, ...]) -> int:
    """P, the number of features that an encoder's trunk makes of an image.

    Raises:
        ValueError: if the image is too small, or not of a backbone's size.
    """
    channels, height, columns = image_shape
    if kind in BACKBONES:
        if image_shape != (3, SIDE, SIDE):
            raise ValueError(f"images for the {kind} encoder must be {(3, SIDE, SIDE)}, got {image_shape}")
        return BACKBONES[kind].dim
    if kind in ("six-conv", "two-conv") and min(height, columns) < 4:
        raise ValueError(f"images for the {kind} encoder must be at least 4 x 4, got {height} x {columns}")
    if kind == "six-conv":
        return 4 * width
    if kind == "two-conv":
        return hidden[-1] if hidden else 2 * width * (height // 4) * (columns // 4)
    return hidden[-1] if kind == "mlp" else channels * height * columns


def _trunk(
    kind: EncoderKind, image_shape: tuple[int, int, int], width: int, hidden: tuple[int, ...], dropout: float
) -> nn.Module:
    channels, height, columns = image_shape
    if kind == "six-conv":
        return six_conv_trunk(channels, width)
    if kind == "two-conv":
        flat = 2 * width * (height // 4) * (columns // 4)
        return nn.Sequential(*two_conv_layers(channels, width), nn.Flatten(), *_hidden_layers((flat, *hidden), dropout))
    if kind == "mlp":
        return nn.Sequential(nn.Flatten(), *_hidden_layers((channels * height * columns, *hidden), dropout))
    return build_backbone(kind) if kind in BACKBONES else nn.Flatten()


def _hidden_layers(sizes: tuple[int, ...], dropout: float) -> list[nn.Module]:
    return [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout))]


def two_conv_layers(channels: int, width: int) -> list[nn.Module]:
    """Two 3 x 3 convolutions of `width` and twice as many channels, each pooled: (N, 2 * width, H / 4, W / 4)."""
    return [
        nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    ]  # fmt: skip


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
