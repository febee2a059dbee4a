"""Images that a model has not learned: drawn ones, which need no data set, and others turned or inverted.

    drawn("stripes", bundle.manifest.input, count=200, seed=0)      # uint8 (200, channels, height, width)

They have the shape that the model takes, and are the same wherever they are drawn. Which *data sets* are strange to one
is in training/datasets.py.

    black, white, gray   one level everywhere
    flat                 one random colour everywhere
    noise                every value by itself, uniform
    stripes, checkerboard, gradients   of two random colours, one dark and one light
    text                 part of a page of random words, black on white
    textures             parts of the photographs of grass, gravel and bricks that scikit-image comes with
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, from_numpy

from serving.bundle import InputSpec
from serving.preprocess import read_array
from training.data import DataError
from training.photos import TEXTURES, find_photo

Pixels = NDArray[np.uint8]  # (channels, height, width)
Draw = Callable[[InputSpec, np.random.Generator], Pixels]

WORDS = ("time", "person", "year", "way", "day", "thing", "man", "world", "life", "hand", "part", "child", "eye", "is")
PAGE_LINES = (4, 14)  # of the text that is seen
PAGE_SIDE = 320  # pixels, at least
DARK, LIGHT = (0, 100), (156, 256)


def drawn(name: str, spec: InputSpec, count: int, seed: int) -> Tensor:
    """Draw images, uint8 (count, channels, height, width).

    Args:
        name: one of `DRAWN`.
        spec: the shape.
        count: how many.
        seed: of their colours, places and sizes.

    Raises:
        DataError: if there are no such images, or they are made of photographs that are not installed.
    """
    if name not in DRAWN:
        raise DataError(f"drawn images must be {', '.join(DRAWN)}, got {name!r}")
    generator = np.random.default_rng(seed)
    return from_numpy(np.stack([DRAWN[name](spec, generator) for _ in range(count)]))


def upside_down(images: Tensor) -> Tensor:
    """Images (N, channels, H, W) turned by 180 degrees."""
    return images.flip(-2, -1)


def inverted(images: Tensor) -> Tensor:
    """Negatives of images uint8 (N, channels, H, W)."""
    return 255 - images


def in_channels(images: Tensor, channels: int) -> Tensor:
    """Images (N, 1 or 3, H, W) as a server makes them for a model of so many channels, at their own size."""
    if images.shape[1] == channels:
        return images
    own = InputSpec.model_validate({"channels": channels, "height": images.shape[2], "width": images.shape[3]})
    return from_numpy(np.stack([read_array(image.permute(1, 2, 0).numpy(), own) for image in images]))


def _level(value: int) -> Draw:
    return lambda spec, generator: np.full((spec.channels, spec.height, spec.width), value, np.uint8)


def _flat(spec: InputSpec, generator: np.random.Generator) -> Pixels:
    return _between(np.zeros((spec.height, spec.width)), *[_colour(spec, generator, (0, 256))] * 2)


def _noise(spec: InputSpec, generator: np.random.Generator) -> Pixels:
    return generator.integers(0, 256, (spec.channels, spec.height, spec.width), dtype=np.uint8)


def _stripes(spec: InputSpec, generator: np.random.Generator) -> Pixels:
    """Of any direction, 1 pixel to a quarter of the image wide."""
    along = _along(spec, generator)
    width = generator.uniform(1, max(1.0, min(spec.height, spec.width) / 4))
    return _between((along / width + generator.uniform(0, 2)) % 2 < 1, *_dark_and_light(spec, generator))


def _checkerboard(spec: InputSpec, generator: np.random.Generator) -> Pixels:
    """Squares of 1 pixel to a quarter of the image."""
    side = int(generator.integers(1, max(1, min(spec.height, spec.width) // 4) + 1))
    rows, columns = np.arange(spec.height)[:, None] // side, np.arange(spec.width) // side
    return _between((rows + columns) % 2, *_dark_and_light(spec, generator))


def _gradient(spec: InputSpec, generator: np.random.Generator) -> Pixels:
    """From one edge to the other, in any direction."""
    along = _along(spec, generator)
    return _between((along - along.min()) / max(np.ptp(along), 1.0), *_dark_and_light(spec, generator))


def _text(spec: InputSpec, generator: np.random.Generator) -> Pixels:
    """What a scanner sees of a page, lines that go on beyond its edges."""
    scale = max(1.0, PAGE_SIDE / min(spec.height, spec.width))
    width, height = round(spec.width * scale), round(spec.height * scale)
    size = height / int(generator.integers(*PAGE_LINES))
    page, font = Image.new("L", (width, height), 255), ImageFont.load_default(0.75 * size)
    draw = ImageDraw.Draw(page)
    for top in np.arange(-generator.uniform(0, size), height, size):
        words = " ".join(generator.choice(WORDS, 24))
        draw.text((-generator.uniform(0, 4 * size), float(top)), words, fill=0, font=font)
    return read_array(np.asarray(page)[:, :, None], spec)


def _texture(spec: InputSpec, generator: np.random.Generator) -> Pixels:
    """A square of a photograph, a quarter of it wide at least."""
    with Image.open(find_photo(str(generator.choice(list(TEXTURES))))) as photo:
        whole = np.asarray(photo.convert("L"))[:, :, None]
    side = int(generator.integers(min(whole.shape[:2]) // 4, min(whole.shape[:2]) + 1))
    top, left = (int(generator.integers(0, length - side + 1)) for length in whole.shape[:2])
    return read_array(whole[top : top + side, left : left + side], spec)


DRAWN: dict[str, Draw] = {
    "black": _level(0),
    "white": _level(255),
    "gray": _level(128),
    "flat": _flat,
    "noise": _noise,
    "stripes": _stripes,
    "checkerboard": _checkerboard,
    "gradients": _gradient,
    "text": _text,
    "textures": _texture,
}


def _along(spec: InputSpec, generator: np.random.Generator) -> NDArray[np.float64]:
    """How far each pixel is along a random direction, in pixels, (height, width)."""
    angle = generator.uniform(0, np.pi)
    far: NDArray[np.float64] = np.arange(spec.height)[:, None] * np.sin(angle) + np.arange(spec.width) * np.cos(angle)
    return far


def _colour(spec: InputSpec, generator: np.random.Generator, levels: tuple[int, int]) -> NDArray[np.int64]:
    return generator.integers(*levels, (spec.channels, 1, 1))


def _dark_and_light(spec: InputSpec, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return _colour(spec, generator, DARK), _colour(spec, generator, LIGHT)


def _between(share: NDArray[Any], first: NDArray[np.int64], second: NDArray[np.int64]) -> Pixels:
    """Pixels of two colours (channels, 1, 1): the first where the share (height, width) is 0, the second where 1."""
    pixels: Pixels = np.rint(first + (second - first) * share).astype(np.uint8)
    return pixels
