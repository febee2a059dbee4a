"""Essentials: the parts of an image file that its pixels need, and no others.

A file may hold text, colour profiles, thumbnails and what else a camera or a stranger has put there: some of it
compressed, some of it in so many parts that reading them takes longer than the pixels. So the chunks of a PNG and the
segments of a JPEG are walked here, once, and all that an answer does not depend on is left out before Pillow sees it.
A WebP is one call of its library and stays as it is; how much of it is coded without loss tells how long that may take.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from serving.errors import ImageTooLarge, UnsupportedImage

FREE_PARTS = 256  # chunks or segments that any file may have, and one more for so many bytes:
BYTES_PER_PART = 512

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = (b"IHDR", b"PLTE", b"tRNS")
PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"
IHDR_BYTES = 25
PLAIN_KINDS = {b"\x08\0\0\0\0": "L", b"\x08\2\0\0\0": "RGB"}  # of depth, colour, compression, filter, interlace
UNREAD_CRC = bytes(4)  # of all pixels: Pillow does not look at it, and those of the parts are right

JPEG_START = b"\xff\xd8"
# A marker that has a length behind it or ends the image: not the stuffed 00, TEM, a restart, SOI or a fill byte.
JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
SOS, EOI, APP1 = 0xDA, 0xD9, 0xE1
RESERVED = range(0x02, 0xC0)
TABLES = (0xC0, 0xC1, 0xC2, 0xC4, 0xDB, 0xDD)  # frames by Huffman codes, codes, quantisation, restarts
SEQUENTIAL = (0xC0, 0xC1)  # frames whose only scan holds all components, or that have several scans
UNCOMMON_FRAMES = (0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))  # lossless, arithmetic, ...
MARKED = {0xE0: b"JFIF", 0xEE: b"Adobe"}  # what they say of the colours
EXIF = b"Exif\0\0"
MAX_TABLES = 64

WEBP_HEADER_BYTES = 12
WEBP_FRAME_BYTES = 24  # before the parts of a frame of an animation
WEBP_LOSSLESS = (b"VP8L", b"ALPH")  # pixels, and transparency beside lossy ones


@dataclass(frozen=True)
class PlainPng:
    """A PNG as most are: gray or RGB, 8 bits a sample, not interlaced, nothing transparent. It needs no more reading.

    Attributes:
        mode: `L` or `RGB`.
        size: width and height.
        data: its rows, compressed.
    """

    mode: str
    size: tuple[int, int]
    data: bytes


@dataclass(frozen=True)
class Essentials:
    """What is left of a file.

    Attributes:
        data: a file of the same pixels.
        exif: its EXIF data, empty if there are none or if they are still in `data`.
        depth: bits of a sample of a PNG; other types have 8.
        scans: how often a decoder of a JPEG goes over the whole image.
        lossless_bytes: of a WebP.
        plain: what a PNG is, if it is a plain one; `data` is then empty.
    """

    data: bytes
    exif: bytes = b""
    depth: int = 8
    scans: int = 1
    lossless_bytes: int = 0
    plain: PlainPng | None = None


def essentials(data: bytes, kind: str) -> Essentials:
    """Leave out all that the pixels do not need.

    Args:
        data: the file.
        kind: `PNG`, `JPEG` or `WebP`, as its first bytes say.

    Raises:
        ImageTooLarge: if it has very many parts.
        UnsupportedImage: if it is a JPEG that no browser shows.
        ValueError: if it is broken.
    """
    if kind == "PNG":
        return _of_png(data)
    return _of_jpeg(data) if kind == "JPEG" else _of_webp(data)


def _of_png(data: bytes) -> Essentials:
    header: dict[bytes, bytes] = {}
    pixels: list[memoryview] = []
    exif, before, view = b"", b"", memoryview(data)
    for kind, start, end in _chunks(view):
        if kind == b"IDAT":
            if pixels and before != b"IDAT":
                raise ValueError("pixels in two places")
            pixels.append(view[start + 8 : end - 4])
        elif kind in PNG_HEADER and not pixels:
            header.setdefault(kind, data[start:end])
        elif kind == b"eXIf":
            exif = exif or data[start + 8 : end - 4]
        before = kind
    if len(header.get(b"IHDR", b"")) != IHDR_BYTES:
        raise ValueError("unreadable header")
    if plain := _plain(header, pixels):
        return Essentials(b"", exif, plain=plain)
    length = sum(map(len, pixels)).to_bytes(4)
    parts = [header[kind] for kind in PNG_HEADER if kind in header]
    file = b"".join([PNG_START, *parts, length, b"IDAT", *pixels, UNREAD_CRC, PNG_END])
    return Essentials(file, exif, depth=header[b"IHDR"][16])


def _plain(header: dict[bytes, bytes], pixels: list[memoryview]) -> PlainPng | None:
    fields = header[b"IHDR"][8:-4]  # width and height in 4 bytes each, depth, colour, and three numbers that are 0
    mode = PLAIN_KINDS.get(fields[8:])
    size = int.from_bytes(fields[:4]), int.from_bytes(fields[4:8])
    return PlainPng(mode, size, b"".join(pixels)) if mode and all(size) and b"tRNS" not in header else None


def _chunks(view: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each chunk of a PNG, up to the last, where it starts and where it ends; all CRCs are checked."""
    start = len(PNG_START)
    for _ in range(_most_parts(view)):
        end = start + 12 + int.from_bytes(view[start : start + 4])
        if end > len(view):
            raise ValueError("truncated")
        kind = bytes(view[start + 4 : start + 8])
        if int.from_bytes(view[end - 4 : end]) != zlib.crc32(view[start + 4 : end - 4]):
            raise ValueError(f"wrong CRC in {kind.decode('latin-1')}")
        yield kind, start, end
        if kind == b"IEND":
            return
        start = end
    raise _too_many_parts(view)


def _of_jpeg(data: bytes) -> Essentials:
    parts, exif, components, segments = [JPEG_START], b"", b"", _segments(data)
    for marker, start, end in segments:
        if marker == SOS:
            holds_all = components == data[start + 4 : start + 5]
            scans = 1 if holds_all else 1 + sum(later == SOS for later, _, _ in segments)
            return Essentials(b"".join([*parts, memoryview(data)[start:]]), exif, scans=scans)
        if marker in UNCOMMON_FRAMES:
            raise UnsupportedImage("JPEG must be baseline or progressive, got a lossless or arithmetic-coded one")
        if marker == APP1 and not exif and data.startswith(EXIF, start + 4):
            exif = data[start + 4 : end]
        if marker in SEQUENTIAL:
            components = data[start + 9 : start + 10]
        if marker in TABLES or (marker in MARKED and data.startswith(MARKED[marker], start + 4)):
            parts.append(data[start:end])
        if marker in RESERVED or end > len(data) or len(parts) > MAX_TABLES:
            break
    raise ValueError("unreadable header")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Each segment's marker, where it starts and where it ends; what lies between two of them is skipped."""
    at = len(JPEG_START)
    for _ in range(_most_parts(data)):
        found = JPEG_MARKER.search(data, at)
        if found is None or data[found.start() + 1] == EOI:
            return
        start = found.start()
        at = start + 2 + max(2, int.from_bytes(data[start + 2 : start + 4]))
        yield data[start + 1], start, at
    raise _too_many_parts(data)


def _of_webp(data: bytes) -> Essentials:
    at, lossless = WEBP_HEADER_BYTES, 0
    for _ in range(_most_parts(data)):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if at >= len(data):
            return Essentials(data, lossless_bytes=lossless)
        if kind in WEBP_LOSSLESS:
            lossless += min(size, len(data) - at)
        at += WEBP_FRAME_BYTES if kind == b"ANMF" else 8 + size + size % 2
    raise _too_many_parts(data)


def _most_parts(data: bytes | memoryview) -> int:
    return FREE_PARTS + len(data) // BYTES_PER_PART


def _too_many_parts(data: bytes | memoryview) -> ImageTooLarge:
    return ImageTooLarge(f"image of {len(data)} bytes must have at most {_most_parts(data)} parts, got more")
