"""Encoders: normalised images (N, channels, H, W) to features (N, D).

An encoder is a trunk, whose output is the pooled features (N, P), and a linear projection to D; without one the pooled
features are the features. A backbone's trunk may end in their square roots (training/power.py). The refit of a head may
replace the projection (training/refit.py).
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from training.backbones import BACKBONES, LEAST_SIDE, TIMM, Backbone, backbone_of, build_backbone
from training.power import with_power

OWN = ("six-conv", "two-conv", "mlp", "linear", "none")
FIRST_BLOCK = 7  # layers of `SixConv`


def _known(kind: str) -> str:
    """An encoder's kind, if there is such an encoder."""
    if kind.startswith(TIMM):
        backbone_of(kind)
    elif kind not in (*OWN, *BACKBONES):
        choices = ", ".join(map(repr, (*OWN, *BACKBONES)))
        expected = f"{choices} or '{TIMM}' and the name of a network of timm"
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
    return kind


EncoderKind = Annotated[str, AfterValidator(_known)]


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

    def inspect(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, channels, H, W) to pooled features (N, P) and the means over space of the first block's channels (N, W).

        The latter are None for a trunk that is not of such blocks.
        """
        if not isinstance(self.trunk, SixConv):
            return self.trunk(images), None
        first_block = self.trunk.first_block(images)
        return self.trunk.rest(first_block), first_block.mean((2, 3))


def build_encoder(
    kind: str,
    image_shape: tuple[int, int, int],
    dim: int | None = None,
    *,
    width: int = 64,
    hidden: Iterable[int] = (),
    dropout: float = 0.0,
    power: bool = False,
) -> Encoder:
    """Build an encoder.

    Args:
        kind: `six-conv`, `two-conv`, `mlp`, `linear` (a projection of the pixels), `none` (the pixels themselves) or a
            frozen backbone, its weights random (training/backbones.py).
        image_shape: channels, height, width; the convolutions take 4 x 4 and up, a backbone
            3 x its side x its side, and many take other sides too.
        dim: D, or None for the pooled features as they are. For `none` it must be the number of pixels, if given.
        width: channels of the first convolutions; the others have twice and four times as many.
        hidden: units per hidden layer of `mlp` and of `two-conv`.
        dropout: share of the hidden units that are dropped in training.
        power: whether a backbone's pooled features become their square roots.

    Raises:
        ValueError: if the image's size or `dim` does not fit.
    """
    hidden = tuple(hidden)
    pooled = pooled_dim(kind, image_shape, width=width, hidden=hidden)
    if kind == "none" and dim not in (None, pooled):
        raise ValueError(f"dim must be the number of pixels ({pooled}) for the encoder none, got {dim}")
    projection = nn.Identity() if dim is None or kind == "none" else nn.Linear(pooled, dim)
    trunk = _trunk(kind, image_shape, width, hidden, dropout)
    return Encoder(with_power(trunk, pooled) if power else trunk, projection)


def pooled_dim(kind: str, image_shape: tuple[int, int, int], *, width: int, hidden: tuple[int, ...]) -> int:
    """P, the number of features that an encoder's trunk makes of an image.

    Raises:
        ValueError: if the image is too small, or not of a backbone's size.
    """
    channels, height, columns = image_shape
    if (backbone := backbone_of(kind)) is not None:
        _require_shape(backbone, image_shape)
        return backbone.dim
    if kind in ("six-conv", "two-conv") and min(height, columns) < 4:
        raise ValueError(f"images for the {kind} encoder must be at least 4 x 4, got {height} x {columns}")
    if kind == "six-conv":
        return 4 * width
    if kind == "two-conv":
        return hidden[-1] if hidden else 2 * width * (height // 4) * (columns // 4)
    return hidden[-1] if kind == "mlp" else channels * height * columns


def _require_shape(backbone: Backbone, image_shape: tuple[int, int, int]) -> None:
    channels, *sides = image_shape
    if backbone.any_side and channels == 3 and min(sides) >= LEAST_SIDE:
        return
    if image_shape != (own := (3, backbone.side, backbone.side)):
        larger = f", or both sides at least {LEAST_SIDE}" if backbone.any_side else ""
        raise ValueError(f"images for the {backbone.kind} encoder must be {own}{larger}, got {image_shape}")


def _trunk(
    kind: str, image_shape: tuple[int, int, int], width: int, hidden: tuple[int, ...], dropout: float
) -> nn.Module:
    channels, height, columns = image_shape
    if kind == "six-conv":
        return SixConv(channels, width)
    if kind == "two-conv":
        flat = 2 * width * (height // 4) * (columns // 4)
        return nn.Sequential(*two_conv_layers(channels, width), nn.Flatten(), *_hidden_layers((flat, *hidden), dropout))
    if kind == "mlp":
        return nn.Sequential(nn.Flatten(), *_hidden_layers((channels * height * columns, *hidden), dropout))
    return nn.Flatten() if backbone_of(kind) is None else build_backbone(kind)


def _hidden_layers(sizes: tuple[int, ...], dropout: float) -> list[nn.Module]:
    return [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout))]


def two_conv_layers(channels: int, width: int) -> list[nn.Module]:
    """Two 3 x 3 convolutions of `width` and twice as many channels, each pooled: (N, 2 * width, H / 4, W / 4)."""
    return [
        nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    ]  # fmt: skip


class SixConv(nn.Sequential):
    """Six 3 x 3 convolutions, pooled after the second, the fourth and (globally) the sixth: (N, 4 * width).

    The encoder of Tezekbayev et al., arXiv 2601.01619, with width 64. What ends in a pooling is a block.

    Args:
        channels: of the images.
        width: of the first block.
    """

    def __init__(self, channels: int, width: int):
        plan = [channels, width, width, 2 * width, 2 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(plan)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            if index in (1, 3):
                layers.append(nn.MaxPool2d(2))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def first_block(self, images: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, width, H / 2, W / 2)."""
        return self._through(images, 0, FIRST_BLOCK)

    def rest(self, first_block: Tensor) -> Tensor:
        """What `first_block` gives to (N, 4 * width)."""
        return self._through(first_block, FIRST_BLOCK, len(self))

    def _through(self, features: Tensor, start: int, stop: int) -> Tensor:
        for layer in list(self)[start:stop]:
            features = layer(features)
        return features
