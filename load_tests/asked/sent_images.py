"""The images that the benchmark of serving sends: a drawn shape, a photo in the size of a web page's, one of a camera.

Both photos are made of those in scikit-learn: one cut to the model's size, the other a mosaic of both at their own
size, so that it has as much detail as a camera's.
"""

from enum import StrEnum
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.bundle import Bundle
from serving.preprocess import to_input
from training.photos import find_photo

PHOTO_BYTES = 28_000
CAMERA = (3000, 4000)  # height, width: 12 megapixels
CAMERA_QUALITY = 90


class Sent(StrEnum):
    """What is sent."""

    shape = "shape"
    photo = "photo"
    camera = "camera"


def encode_image(sent: Sent, bundle: Bundle) -> bytes:
    """The file that is sent: a PNG of a drawn shape, a JPEG of 28 kB in the model's size, or one of 12 megapixels."""
    if sent is Sent.shape:
        pixels = shape(bundle).transpose(1, 2, 0)
        return encoded(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels, "PNG")
    if sent is Sent.camera:
        return encoded(mosaic(*CAMERA), "JPEG", quality=CAMERA_QUALITY)
    cut = to_input(_pixels("temple"), bundle.manifest.input).transpose(1, 2, 0)
    files = (encoded(cut, "JPEG", quality=quality) for quality in range(75, 101))
    return min(files, key=lambda file: abs(len(file) - PHOTO_BYTES))


def shape(bundle: Bundle) -> NDArray[np.uint8]:
    """A drawn shape in the model's size, (channels, height, width)."""
    drawn: NDArray[np.uint8] = bundle.read_golden()[0][2]
    return drawn


def mosaic(height: int, width: int) -> NDArray[np.uint8]:
    """Photos side by side, as many as it takes, (height, width, 3)."""
    tile = np.concatenate([_pixels("temple"), _pixels("dahlia")])
    return np.tile(tile, (-(-height // tile.shape[0]), -(-width // tile.shape[1]), 1))[:height, :width]


def _pixels(photo: str) -> NDArray[np.uint8]:
    with Image.open(find_photo(photo)) as opened:
        return np.asarray(opened)


def encoded(pixels: NDArray[np.uint8], kind: str, **options: int) -> bytes:
    """(H, W) or (H, W, 3) uint8 → the bytes of an image file."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()
