"""Decoding: the bytes of one PNG, JPEG or WebP image → uint8 (H, W, C), gray or RGB.

Bytes come from strangers. Limits are checked before a pixel is decoded, only the three plugins above are reachable,
and whatever goes wrong inside Pillow becomes an `ImageError`. Nothing here keeps state, so threads may share it.
"""

import zlib
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from serving.errors import ImageError, ImageTooLarge, UnsupportedImage

SERVED_TYPES = "PNG, JPEG or WebP"
EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED = (5, 6, 7, 8)  # the orientations of an image that lies on its side
DRAFT_MARGIN = 2  # a draft this many times as large leaves the antialiasing to the resize


class Limits(BaseModel):
    """What one request may ask for.

    Attributes:
        max_bytes: size of one encoded image.
        max_pixels: height times width of one image.
        max_instances: images in one request.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_bytes: int = Field(default=10 * 1024 * 1024, ge=1)
    max_pixels: int = Field(default=40_000_000, ge=1)
    max_instances: int = Field(default=256, ge=1)


DEFAULT_LIMITS = Limits()


def decode(
    data: bytes,
    *,
    channels: Literal[1, 3],
    background: int = 0,
    limits: Limits = DEFAULT_LIMITS,
    wanted: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Decode one image, upright as its EXIF orientation says; of an animation, the first frame.

    Args:
        data: the encoded image.
        channels: 1 for gray, 3 for RGB.
        background: gray level, 0 to 255, that shows through transparent pixels.
        limits: bytes and pixels allowed.
        wanted: the height and width that the image is made into afterwards. A large JPEG is then decoded at a half,
            a quarter or an eighth of its size, which is many times faster, but at no less than twice what is wanted.

    Returns:
        The pixels, (H, W, channels).

    Raises:
        UnsupportedImage: if the bytes start like no type that is served.
        ImageTooLarge: if the image has more bytes or pixels than allowed.
        ImageError: if the image is empty, truncated or otherwise broken.
    """
    if not data:
        raise ImageError("image must not be empty, got 0 bytes")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"image must have at most {limits.max_bytes} bytes, got {len(data)}")
    kind = _kind(data)
    try:
        image = _open(data, kind, limits)
        if kind == "PNG":
            _check_png(data)
        return _pixels(image, channels, background, wanted)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise ImageTooLarge(f"image must have at most {limits.max_pixels} pixels, got more: {exc}") from exc
    except UnidentifiedImageError as exc:
        raise ImageError(f"image must be a whole {kind} image, got a broken one: unreadable header") from exc
    except Exception as exc:  # a broken image can raise anything in Pillow: SyntaxError, struct.error, EOFError, ...
        raise ImageError(f"image must be a whole {kind} image, got a broken one: {exc}") from exc


def _kind(data: bytes) -> str:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    raise UnsupportedImage(f"image must be {SERVED_TYPES}, got bytes that start with {data[:8]!r}")


def _open(data: bytes, kind: str, limits: Limits) -> Image.Image:
    image = Image.open(BytesIO(data), formats=[kind.upper()])
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageTooLarge(f"image must have at most {limits.max_pixels} pixels, got {width} x {height}")
    return image


def _check_png(data: bytes) -> None:
    """Check the CRC of every chunk; Pillow does not for the pixels', and would answer for damaged ones."""
    view, start, kind = memoryview(data), 8, b""
    while kind != b"IEND":
        end = start + 8 + int.from_bytes(view[start : start + 4])
        if end + 4 > len(data):
            raise ValueError("truncated")
        kind = bytes(view[start + 4 : start + 8])
        if int.from_bytes(view[end : end + 4]) != zlib.crc32(view[start + 4 : end]):
            raise ValueError(f"wrong CRC in {kind.decode('latin-1')}")
        start = end + 4


def _pixels(
    image: Image.Image, channels: Literal[1, 3], background: int, wanted: tuple[int, int] | None
) -> NDArray[np.uint8]:
    orientation = _orientation(image)
    if wanted is not None:
        image = _draft(image, channels, wanted[::-1] if orientation in TURNED else wanted)
    image.load()
    if image.mode.startswith("I"):
        image = _gray8(image, background)
    if image.has_transparency_data:
        image = _opaque(image, background)
    image = image.convert("L" if channels == 1 else "RGB")
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    return np.array(image, dtype=np.uint8).reshape(image.height, image.width, channels)


def _draft(image: Image.Image, channels: Literal[1, 3], wanted: tuple[int, int]) -> Image.Image:
    """A large JPEG at a fraction of its size; any other image as it is."""
    height, width = wanted
    draft = image.draft("L" if channels == 1 else None, (DRAFT_MARGIN * width, DRAFT_MARGIN * height))
    if draft is None or draft[1][2:] == image.size:
        return image
    # The last column or row stands for less than a whole one: spread the pixels so that all of them stand for as much.
    return image.resize(image.size, Image.Resampling.BICUBIC, box=draft[1])


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # the pixels are worth an answer even if the metadata beside them is broken
        return 1


def _gray8(image: Image.Image, background: int) -> Image.Image:
    """Scale 16-bit gray to 8 bits; Pillow's own conversion clips it."""
    values = np.asarray(image).astype(np.uint32)  # (H, W), 0 to 65535
    gray = (values * 255 + 32767) // 65535
    if "transparency" in image.info:
        gray[values == image.info["transparency"]] = background
    return Image.fromarray(gray.astype(np.uint8))


def _opaque(image: Image.Image, background: int) -> Image.Image:
    colours = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (background, background, background, 255))
    return Image.alpha_composite(canvas, colours)
