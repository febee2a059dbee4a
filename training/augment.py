"""Images changed at random while a network learns from them, a batch at a time on their device.

    generator = torch.Generator().manual_seed(0)
    images = augment(images, crop_padding=4, flip=True, generator=generator)         # uint8, the same size
    images = random_resized_crop(images, (128, 128), scale=0.3, generator=generator)  # float32, 128 x 128

Everything is drawn from a generator on the CPU, so that a seed means the same on every device.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

ASPECT = (3 / 4, 4 / 3)  # of random resized crops: width over height


def augment(images: Tensor, *, crop_padding: int, flip: bool, cutout: int = 0, generator: torch.Generator) -> Tensor:
    """Random crops of the zero-padded images, left-right flips and cutouts, one draw an image, on the images' device.

    Cutout: DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, arXiv 1708.04552.

    Args:
        images: (N, channels, height, width).
        crop_padding: pixels on every side.
        flip: mirror each image with probability a half.
        cutout: side in pixels of a square of zeros round a random pixel; the part beyond the border is lost.
        generator: on the CPU, so that a seed means the same on every device.
    """
    count, _, height, width = images.shape
    if flip:
        flipped = (torch.rand((count, 1, 1, 1), generator=generator) < 0.5).to(images.device)
    if crop_padding:
        rows, columns = torch.randint(2 * crop_padding + 1, (2, count), generator=generator).to(images.device)
        padded = F.pad(images, (crop_padding,) * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, channels, rows, columns, H, W), a view
        images = windows[torch.arange(count, device=images.device), :, rows, columns]
    if flip:
        images = torch.where(flipped, images.flip(3), images)
    if cutout:
        rows = _within(cutout, height, count, generator)[:, :, None]
        columns = _within(cutout, width, count, generator)[:, None, :]
        images = images.masked_fill((rows & columns)[:, None].to(images.device), 0)
    return images


def _within(length: int, side: int, count: int, generator: torch.Generator) -> Tensor:
    """Which positions lie in a stretch of `length` round a random one, (count, side)."""
    centre = torch.randint(side, (count, 1), generator=generator)
    offset = torch.arange(side) - centre + length // 2
    return (offset >= 0) & (offset < length)


def shrink(images: Tensor, scale: float) -> Tensor:
    """Images (N, channels, H, W) with sides of `scale` times theirs, antialiased, in the same type."""
    if scale == 1 or not len(images):
        return images
    size = [max(4, round(side * scale)) for side in images.shape[2:]]
    if images.is_cpu or images.is_floating_point():
        return F.interpolate(images, size, mode="bilinear", antialias=True)
    shrunk = F.interpolate(images.float(), size, mode="bilinear", antialias=True)  # GPUs have no kernel for bytes
    return shrunk.round_().clamp_(0, 255).to(images.dtype)


def random_resized_crop(
    images: Tensor,
    size: tuple[int, int],
    *,
    scale: float,
    aspect: tuple[float, float] = ASPECT,
    generator: torch.Generator,
) -> Tensor:
    """A random box of each image, brought to `size` by bilinear sampling in one operation for the whole batch.

    The share of the area is uniform, the logarithm of the aspect ratio too, the place uniform inside the image; a box
    that would be longer than a side is cut there. There is no antialiasing: the boxes should not be much larger than
    `size`. Szegedy et al. 2014, Going Deeper with Convolutions, arXiv 1409.4842, section 6.

    Args:
        images: (N, channels, H, W), uint8 or floating point.
        size: height and width of the result, in pixels.
        scale: least share of the image's area, above 0 and at most 1.
        aspect: least and greatest width over height of a box, in pixels of the image.
        generator: on the CPU.

    Returns:
        float32 (N, channels, *size), not rounded.
    """
    boxes = _random_boxes(len(images), images.shape[2] / images.shape[3], scale, aspect, generator)
    grid = F.affine_grid(boxes.to(images.device), [*images.shape[:2], *size], align_corners=False)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def _random_boxes(
    count: int, height_over_width: float, scale: float, aspect: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Maps (N, 2, 3) of a whole image, from -1 to 1 in both directions, onto a random box of it."""
    area, ratio, across, down = torch.rand((4, count), generator=generator)
    area = scale + (1 - scale) * area
    low, high = map(math.log, aspect)
    ratio = torch.exp(low + (high - low) * ratio) * height_over_width  # of shares of the sides
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    boxes = torch.zeros(count, 2, 3)
    boxes[:, 0, 0], boxes[:, 1, 1] = width, height
    boxes[:, 0, 2], boxes[:, 1, 2] = (1 - width) * (2 * across - 1), (1 - height) * (2 * down - 1)
    return boxes


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Whole images (N, channels, H, W) at `size`, antialiased, as a server resizes them but not rounded."""
    if images.shape[2:] == size or not len(images):
        return images
    return F.interpolate(images.float(), size, mode="bilinear", antialias=True)
