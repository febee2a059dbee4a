"""Preprocessing: an image of any size → the uint8 (channels, height, width) that the graph takes.

Training and every server read and resize with these functions, so that a model sees what it has learned. Normalisation
is not here: it is part of the exported graph.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.bundle import InputSpec
from serving.decode import OpenImage, open_image, read_picture
from serving.errors import ImageError
from serving.limits import DEFAULT_LIMITS, Limits

REDUCING_GAP = 3.0  # images this many times too large are first averaged over whole blocks, which is faster


def read_image(data: bytes, spec: InputSpec, limits: Limits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Decode one image and bring it to the model's size; a large JPEG is decoded at a fraction of its own.

    Returns:
        (channels, height, width), contiguous.

    Raises:
        ImageError: or one of its subclasses, if the image cannot be read.
    """
    return read_open_image(open_image(data, limits), spec)


def read_open_image(opened: OpenImage, spec: InputSpec) -> NDArray[np.uint8]:
    """Likewise, for an image whose header is read."""
    wanted = (spec.height, spec.width)
    with read_picture(opened, channels=spec.channels, background=spec.background, wanted=wanted) as picture:
        return np.ascontiguousarray(_fitted(picture, spec).transpose(2, 0, 1))  # no copy of a large picture's pixels


def read_array(pixels: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """Likewise, for pixels (H, W, C) with C = 1 or 3, gray ones in three equal channels if the model takes colours.

    Raises:
        ImageError: if they are not such pixels.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise ImageError(f"image must be uint8 (H, W, 1 or 3), got {pixels.dtype} {pixels.shape}")
    if pixels.shape[2] != spec.channels:
        picture = Image.fromarray(pixels[:, :, 0] if spec.channels == 3 else pixels)
        height, width = pixels.shape[:2]
        pixels = np.asarray(picture.convert("RGB" if spec.channels == 3 else "L")).reshape(height, width, -1)
    return to_input(pixels, spec)


def to_input(image: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """Bring an image to the model's size by antialiased bilinear sampling.

    Args:
        image: (H, W, C).
        spec: the size and the rule: `crop` cuts the centre at the model's aspect ratio, `stretch` takes the whole.

    Returns:
        (channels, height, width), contiguous; the same pixels if the size is right already.

    Raises:
        ValueError: if the image is not (H, W, channels) uint8.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != spec.channels:
        raise ValueError(f"image must be uint8 (H, W, {spec.channels}), got {image.dtype} {image.shape}")
    if image.shape[:2] != (spec.height, spec.width):
        image = _fitted(Image.fromarray(image[:, :, 0] if spec.channels == 1 else image), spec)
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def seen_box(height: int, width: int, spec: InputSpec) -> tuple[float, float, float, float]:
    """The part of a picture that the graph sees, resized: (left, top, right, bottom) in the picture's pixels.

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        spec: `crop` sees the largest centred box of the model's aspect ratio, `stretch` the whole.
    """
    if spec.resize == "stretch":
        return 0, 0, width, height
    scale = min(height / spec.height, width / spec.width)
    top, left = (height - scale * spec.height) / 2, (width - scale * spec.width) / 2
    return max(left, 0), max(top, 0), min(left + scale * spec.width, width), min(top + scale * spec.height, height)


def _fitted(picture: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """A picture's pixels, (height, width, channels), at the model's size."""
    width, height = picture.size
    if (height, width) != (spec.height, spec.width):
        box = seen_box(height, width, spec)
        picture = picture.resize((spec.width, spec.height), Image.Resampling.BILINEAR, box, REDUCING_GAP)
    return np.asarray(picture).reshape(spec.height, spec.width, spec.channels)
