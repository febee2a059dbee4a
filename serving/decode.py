"""Decoding: the bytes of one PNG, JPEG or WebP image → uint8 (H, W, C), gray or RGB.

    opened = open_image(data, limits)                 the header alone: type, size, orientation
    pixels = read_pixels(opened, channels=3)

Bytes come from strangers. Limits are checked before a pixel is decoded, only the three plugins above are reachable and
see only what the pixels need, and whatever goes wrong inside Pillow becomes an `ImageError`. Nothing here keeps state,
so threads may share it.
"""

import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from serving.errors import ImageError, ImageTooLarge, UnsupportedImage
from serving.essentials import PNG_START, Essentials, PlainPng, essentials
from serving.limits import DEFAULT_LIMITS, Limits

SERVED_TYPES = "PNG, JPEG or WebP"
EXIF_ORIENTATION = 0x0112
EXIF_TYPES = {3: "H", 4: "I"}  # the formats of the two whole numbers that it may be
EXIF_START = b"Exif\0\0"
MAX_EXIF_TAGS = 512  # are looked at for the orientation, which is among the first
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
PIXEL_BYTES, RGBA_BYTES = 3, 4  # a pixel of more than the first counts for more; WebP and transparency take the latter
JPEG_SCANS = 10  # as many as a progressive JPEG has; its pixels count half, and more if there are more scans
CODE_PIXELS, CODE_BYTES = 16, 2.5  # a lossless WebP may have a Huffman code for so many pixels, or bytes,
COUNTED_PER_CODE = 160  # which takes as long as so many pixels


@dataclass(frozen=True)
class OpenImage:
    """An image whose header is read and whose pixels are not.

    Attributes:
        kind: `PNG`, `JPEG` or `WebP`.
        picture: Pillow's side of it; a plain PNG has none until it is decoded.
        orientation: as in EXIF, 1 to 8.
        counted_pixels: what it takes of a request's budget: height times width, and less or more as decoding does.
    """

    kind: str
    picture: Image.Image | PlainPng
    orientation: int
    counted_pixels: int


def decode(
    data: bytes,
    *,
    channels: Literal[1, 3],
    background: int = 0,
    limits: Limits = DEFAULT_LIMITS,
    wanted: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Open one image and read its pixels; see the two functions below."""
    return read_pixels(open_image(data, limits), channels=channels, background=background, wanted=wanted)


def open_image(data: bytes, limits: Limits = DEFAULT_LIMITS) -> OpenImage:
    """Read one image's header.

    Args:
        data: the encoded image.
        limits: bytes, pixels and side allowed.

    Raises:
        UnsupportedImage: if the bytes start like no type that is served.
        ImageTooLarge: if the image has more bytes, pixels or parts than allowed.
        ImageError: if the image is empty, or broken in a way that shows already.
    """
    if not data:
        raise ImageError("image must not be empty, got 0 bytes")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"image must have at most {limits.max_bytes} bytes, got {len(data)}")
    kind = _kind(data)
    with _as_image_errors(kind, limits):
        kept = essentials(data, kind)
        if kept.plain is not None:
            _check_size(kept.plain.size, limits)
            return OpenImage(kind, kept.plain, _orientation(kept.exif), kept.plain.size[0] * kept.plain.size[1])
        picture = Image.open(BytesIO(kept.data), formats=[kind.upper()])
        _check_size(picture.size, limits)
        orientation = _orientation(kept.exif or picture.info.get("exif", b""))
        return OpenImage(kind, picture, orientation, _counted_pixels(picture, kept))


def read_pixels(
    opened: OpenImage, *, channels: Literal[1, 3], background: int = 0, wanted: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """The pixels, (H, W, channels), of what `read_picture` gives."""
    with read_picture(opened, channels=channels, background=background, wanted=wanted) as image:
        return np.array(image).reshape(image.height, image.width, channels)


@contextmanager
def read_picture(
    opened: OpenImage, *, channels: Literal[1, 3], background: int = 0, wanted: tuple[int, int] | None = None
) -> Iterator[Image.Image]:
    """Decode an image, upright as its EXIF orientation says; of an animation, the first frame. It may be read once.

    Args:
        opened: the image.
        channels: 1 for gray, 3 for RGB.
        background: gray level, 0 to 255, that shows through transparent pixels.
        wanted: the height and width that the image is made into afterwards. A large JPEG is then decoded at a half,
            a quarter or an eighth of its size, which is many times faster, but at no less than twice what is wanted.

    Yields:
        The picture, in Pillow's mode L or RGB. It is gone afterwards, for its place is needed for its neighbours.

    Raises:
        ImageError: if the image is truncated or otherwise broken.
    """
    picture = opened.picture
    with nullcontext() if isinstance(picture, PlainPng) else closing(picture):
        with _as_image_errors(opened.kind):
            if isinstance(picture, PlainPng):
                image = Image.frombytes(picture.mode, picture.size, picture.data, "zip", picture.mode, 0)
            else:
                image = _loaded(picture, opened.orientation, channels, background, wanted)
            image = _upright(image, opened.orientation, channels)
        yield image


@contextmanager
def _as_image_errors(kind: str, limits: Limits = DEFAULT_LIMITS) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise ImageTooLarge(f"image must have at most {limits.max_pixels} pixels, got more: {exc}") from exc
    except UnidentifiedImageError as exc:
        raise ImageError(f"image must be a whole {kind} image, got a broken one: unreadable header") from exc
    except Exception as exc:  # a broken image can raise anything in Pillow: SyntaxError, struct.error, EOFError, ...
        raise ImageError(f"image must be a whole {kind} image, got a broken one: {exc}") from exc


def _kind(data: bytes) -> str:
    if data.startswith(PNG_START):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    raise UnsupportedImage(f"image must be {SERVED_TYPES}, got bytes that start with {data[:8]!r}")


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageTooLarge(f"image must have at most {limits.max_pixels} pixels, got {width} x {height}")
    if max(size) > limits.max_side:
        raise ImageTooLarge(f"image must be at most {limits.max_side} pixels high and wide, got {width} x {height}")


def _counted_pixels(picture: Image.Image, kept: Essentials) -> int:
    pixels = picture.width * picture.height
    if picture.format == "JPEG":
        return pixels * max(JPEG_SCANS, kept.scans) // (2 * JPEG_SCANS)
    size = len(picture.getbands()) * (2 if kept.depth > 8 else 1)
    codes = min(pixels // CODE_PIXELS, int(kept.lossless_bytes / CODE_BYTES))
    size = max(PIXEL_BYTES, size, RGBA_BYTES if picture.format == "WEBP" or picture.has_transparency_data else 0)
    return pixels * size // PIXEL_BYTES + codes * COUNTED_PER_CODE


def _orientation(exif: bytes) -> int:
    """The orientation in EXIF data; what is broken there leaves the image as it is."""
    if not exif:
        return 1
    try:
        start = len(EXIF_START) if exif.startswith(EXIF_START) else 0
        order = {b"II": "<", b"MM": ">"}[exif[start : start + 2]]
        (first,) = struct.unpack_from(f"{order}I", exif, start + 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start + first)
        for at in range(start + first + 2, start + first + 2 + 12 * min(count, MAX_EXIF_TAGS), 12):
            tag, format_ = struct.unpack_from(f"{order}HH", exif, at)
            if tag == EXIF_ORIENTATION:
                return int(struct.unpack_from(order + EXIF_TYPES[format_], exif, at + 8)[0])
    except (KeyError, struct.error):
        pass  # the pixels are worth an answer even if the metadata beside them is broken
    return 1


def _loaded(
    image: Image.Image, orientation: int, channels: Literal[1, 3], background: int, wanted: tuple[int, int] | None
) -> Image.Image:
    """Decode an image; of 16-bit gray and of what is transparent, all that can be seen in 8 bits."""
    if wanted is not None:
        image = _draft(image, channels, wanted[::-1] if orientation in TURNED else wanted)
    image.load()
    if image.mode.startswith("I"):
        image = _gray8(image, background)
    return _opaque(image, background) if image.has_transparency_data else image


def _upright(image: Image.Image, orientation: int, channels: Literal[1, 3]) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _draft(image: Image.Image, channels: Literal[1, 3], wanted: tuple[int, int]) -> Image.Image:
    """A large JPEG at a fraction of its size; any other image as it is."""
    height, width = wanted
    draft = image.draft("L" if channels == 1 else None, (DRAFT_MARGIN * width, DRAFT_MARGIN * height))
    if draft is None or draft[1][2:] == image.size:
        return image
    # The last column or row stands for less than a whole one: spread the pixels so that all of them stand for as much.
    return image.resize(image.size, Image.Resampling.BICUBIC, box=draft[1])


def _gray8(image: Image.Image, background: int) -> Image.Image:
    """Scale 16-bit gray to 8 bits; Pillow's own conversion clips it."""
    values = np.asarray(image)  # (H, W), 0 to 65535
    wide = values.astype(np.uint32)
    wide *= 255
    wide += 32895
    wide >>= 16  # the nearest of values / 257, as (values * 255 + 32767) // 65535 is, and much faster
    gray = wide.astype(np.uint8)
    if "transparency" in image.info:
        gray[values == image.info["transparency"]] = background
    return Image.fromarray(gray)


def _opaque(image: Image.Image, background: int) -> Image.Image:
    colours = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, (background, background, background))
    canvas.paste(colours, mask=colours)
    return canvas
