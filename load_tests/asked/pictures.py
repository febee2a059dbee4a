"""The images that a load sends: drawn strokes, photos as of a camera, and what must be refused. A seed decides each.

    png = sketch("PNG", seed=3)
    photo = camera_photo(12, seed=0)  # megapixels

No two sketches of a format are the same, so an answer that belongs to another request is seen to be wrong.
"""

import random
from functools import cache
from io import BytesIO

from PIL import Image, ImageDraw

SIDES = (28, 28, 64, 224)
PHOTO_SIDES = {2: (1200, 1600), 12: (3000, 4000)}  # height, width by megapixels
OVERSIZED = (40_000, 2_000)  # width, height: more pixels and a longer side than the limits allow, in a few kB


def sketch(format_: str, seed: int) -> bytes:
    """A PNG, JPEG or WebP with a few strokes, of 28 x 28 pixels or larger, every other one in gray."""
    random_ = random.Random(seed)
    side = random_.choice(SIDES)
    image = Image.new("L" if seed % 2 else "RGB", (side, side))
    pen = ImageDraw.Draw(image)
    points = [(random_.randrange(side), random_.randrange(side)) for _ in range(random_.randint(3, 5))]
    pen.line(points, fill="white", width=max(2, side // 12), joint="curve")
    return _encoded(image, format_)


@cache
def camera_photo(megapixels: int, seed: int) -> bytes:
    """A JPEG with as much detail as a camera's; other seeds begin at other pixels of the same scene."""
    from load_tests.asked.sent_images import CAMERA_QUALITY, mosaic  # which imports torch

    height, width = PHOTO_SIDES[megapixels]
    shift = 37 * seed
    scene = mosaic(height + shift, width + shift)[shift:, shift:]
    return _encoded(Image.fromarray(scene), "JPEG", quality=CAMERA_QUALITY)


def corrupt(format_: str, seed: int) -> bytes:
    """The first half of a sketch."""
    whole = sketch(format_, seed)
    return whole[: len(whole) // 2]


def oversized() -> bytes:
    """A PNG of more pixels than a server takes, all of them black."""
    return _encoded(Image.new("1", OVERSIZED), "PNG")


def _encoded(image: Image.Image, format_: str, **options: int) -> bytes:
    stream = BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()
