"""The images of a list, small enough for a page: found in their source, decoded as a server would.

    seen = thumbnails(keys, source, bundle.manifest.input)
    seen.images["a.png"].uri
    thumbnail_of(item)                                one of them

Their bytes come from strangers: they are decoded within the limits of a server, and what is shown is made anew from the
pixels.
"""

import base64
from collections.abc import Collection
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.batch.source import Item, Source, SourceError
from serving.bundle import InputSpec
from serving.decode import decode
from serving.errors import ServingError
from serving.limits import DEFAULT_LIMITS, Limits

SIDE = 128  # pixels, of a thumbnail's longer side
JPEG_ABOVE = 64  # a larger one is a JPEG, a smaller one keeps every pixel


@dataclass(frozen=True)
class Thumbnail:
    """A small image: its bytes, their type, its width and height in pixels."""

    content: bytes
    media_type: str
    width: int
    height: int

    @property
    def uri(self) -> str:
        """The image as an address that holds it."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Thumbnails:
    """What can be shown of some images.

    Attributes:
        images: by key.
        missing: why an image cannot be shown, by key.
        reason: why none can; None if they were looked for.
    """

    images: dict[str, Thumbnail] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    reason: str | None = None


def thumbnails(keys: Collection[str], source: Source, spec: InputSpec, limits: Limits = DEFAULT_LIMITS) -> Thumbnails:
    """Find images in their source and make them small.

    Raises:
        SourceError: if the source is not there, has none of them, or breaks off.
    """
    seen = Thumbnails()
    try:
        for item in source.find(keys, limits.max_bytes):
            try:
                seen.images[item.key] = thumbnail_of(item, spec.background, limits)
            except ServingError as error:
                seen.missing[item.key] = str(error)
    except OSError as exc:
        raise SourceError(f"the source of the images must be there, got {exc}") from exc
    lost = [key for key in keys if key not in seen.images and key not in seen.missing]
    if len(lost) == len(keys):
        raise SourceError(f"the source must have the images of the table, got none of {len(keys)} that were looked for")
    seen.missing.update(dict.fromkeys(lost, "not in the source any more"))
    return seen


def thumbnail(pixels: NDArray[np.uint8]) -> Thumbnail:
    """Make an image (H, W, C) small; smaller ones stay as they are."""
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((SIDE, SIDE))
    kind = "JPEG" if max(picture.size) > JPEG_ABOVE else "PNG"
    stream = BytesIO()
    picture.save(stream, kind, quality=85)
    return Thumbnail(stream.getvalue(), f"image/{kind.lower()}", picture.width, picture.height)


def thumbnail_of(item: Item, background: int = 0, limits: Limits = DEFAULT_LIMITS) -> Thumbnail:
    """Make an image of a source small.

    Args:
        item: the image.
        background: gray level that shows through transparent pixels.
        limits: of what is decoded.

    Raises:
        ServingError: why it cannot be had or decoded.
    """
    if isinstance(item.image, ServingError):
        raise item.image
    if isinstance(item.image, bytes):
        return thumbnail(decode(item.image, channels=3, background=background, limits=limits, wanted=(SIDE, SIDE)))
    return thumbnail(item.image)
