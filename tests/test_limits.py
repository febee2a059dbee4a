"""What one request may ask for, refused by the headers alone; and what of a file is never read."""

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import encoded
from PIL import Image, ImageFile, PngImagePlugin

from serving.bundle import Bundle
from serving.decode import decode, open_image
from serving.errors import ImageTooLarge, ServingError, UnsupportedImage
from serving.essentials import essentials
from serving.limits import DEFAULT_LIMITS, Limits
from serving.parameters import DEFAULT_OPTIONS
from serving.predictor import Predictor

PNG_START = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, RGBA = 0, 2, 6  # colour types of a PNG
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 31, 3), dtype=np.uint8)


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int = 8, colour: int = GRAY, pixels: bytes = b"") -> bytes:
    """A PNG that declares a size, with whatever pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return PNG_START + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND")


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def with_scans(scans: int, side: int) -> bytes:
    """A progressive JPEG, all black, whose one block after another is refined again and again."""
    blocks = (side // 8) ** 2
    frame = segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    dc, ac = b"\0" + bytes([1]) + bytes(15) + b"\0", b"\x10" + bytes([0, 1]) + bytes(14) + b"\0"
    tables = segment(0xDB, b"\0" + bytes([1] * 64)) + frame + segment(0xC4, dc) + segment(0xC4, ac)
    first = segment(0xDA, b"\1\1\0\0\0\1") + bytes(-(-blocks // 8))
    again = segment(0xDA, b"\1\1\0\1\x3f\x10") + bytes(-(-blocks // 4))
    return b"\xff\xd8" + tables + first + again * (scans - 1) + b"\xff\xd9"


def test_the_defaults() -> None:
    assert DEFAULT_LIMITS.model_dump() == {
        "max_bytes": 10 * 2**20,
        "max_pixels": 40_000_000,
        "max_side": 32_768,
        "max_instances": 256,
        "max_request_pixels": 24_000_000,
        "max_request_bytes": 16 * 2**20,
        "max_response_bytes": 16 * 2**20,
    }


@pytest.mark.parametrize("size", [(1, 40_000_000), (40_000_000, 1), (32_769, 2)])
def test_a_side_that_is_too_long_is_refused_by_the_header_alone(size: tuple[int, int]) -> None:
    with pytest.raises(ImageTooLarge) as info:
        open_image(png(*size))

    assert str(info.value) == f"image must be at most 32768 pixels high and wide, got {size[0]} x {size[1]}"
    assert (info.value.status, info.value.code) == (413, "image_too_large")


@pytest.mark.parametrize(
    ("data", "counted"),
    [
        (png(600, 50), 30_000),
        (png(600, 50, depth=16), 30_000),
        (png(600, 50, colour=RGB), 30_000),
        (png(600, 50, colour=RGBA), 40_000),
        (png(600, 50, depth=16, colour=RGB), 60_000),
        (png(600, 50, depth=16, colour=RGBA), 80_000),
        (encoded(np.full((50, 600), 7, dtype=np.uint8), "PNG", transparency=7), 40_000),
        (encoded(PIXELS, "WebP"), 24 * 31 * 4 // 3),
        (encoded(PIXELS, "JPEG"), 12 * 31),
        (encoded(PIXELS, "JPEG", progressive=True), 12 * 31),
        (with_scans(10, 64), 64 * 64 // 2),
        (with_scans(100, 64), 64 * 64 * 5),
    ],
)
def test_what_takes_long_to_decode_counts_for_more(data: bytes, counted: int) -> None:
    assert open_image(data).counted_pixels == counted


@pytest.mark.parametrize(("part", "options"), [(b"VP8L", {"lossless": True}), (b"ALPH", {"lossless": False})])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_webp_without_loss_counts_for_the_codes_that_it_may_hold(
    part: bytes, options: dict[str, bool], frames: int
) -> None:
    stream = io.BytesIO()
    flat = [Image.new("RGBA", (64, 64), (level, 0, 0, level)) for level in (0, 99, 200)[:frames]]
    flat[0].save(stream, "WebP", save_all=frames > 1, append_images=flat[1:], **options)
    data = stream.getvalue()

    sizes = [struct.unpack_from("<I", data, found.end())[0] for found in re.finditer(part, data)]
    assert len(sizes) == frames
    assert open_image(data).counted_pixels == 64 * 64 * 4 // 3 + 160 * int(sum(sizes) / 2.5)


def test_which_are_no_more_than_its_pixels_allow() -> None:
    noise = encoded(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), "WebP", lossless=True)

    assert open_image(noise).counted_pixels == 64 * 64 * 4 // 3 + 160 * (64 * 64 // 16)


def test_the_jpeg_of_many_scans_is_a_whole_image() -> None:
    assert decode(with_scans(100, 64), channels=1).shape == (64, 64, 1)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes of the images whose pixels Pillow has read."""
    sizes: list[tuple[int, int]] = []
    load = ImageFile.ImageFile.load

    def counting(self: ImageFile.ImageFile) -> object:
        if self.tile:  # it is not there yet
            sizes.append(self.size)
        return load(self)

    plain = Image.frombytes

    def counting_plain(mode: str, size: tuple[int, int], *arguments: Any) -> Image.Image:
        sizes.append(size)
        return plain(mode, size, *arguments)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counting)
    monkeypatch.setattr(Image, "frombytes", counting_plain)
    return sizes


def test_a_request_of_too_many_pixels_is_refused_and_costs_its_neighbours_nothing(
    bundle_dir: Path, images: list[bytes], decoded: list[tuple[int, int]]
) -> None:
    predictor = Predictor(Bundle.load(bundle_dir), threads=1, limits=Limits(max_request_pixels=8 * 8 * 4))
    work = [(images[:4], DEFAULT_OPTIONS), (images[:5], DEFAULT_OPTIONS), ([images[5], b""], DEFAULT_OPTIONS)]

    first, refused, last = predictor.predict_together(work)
    assert isinstance(refused, ImageTooLarge)
    assert str(refused) == (
        "images of one request must count at most 256 pixels together, got 320 by image 5 of 5: "
        "send fewer or smaller ones at a time"
    )
    assert isinstance(first, list)
    assert isinstance(last, list)
    assert [isinstance(result, ServingError) for result in first + last] == [False] * 5 + [True]
    assert decoded == [(8, 8)] * 5
    with pytest.raises(ImageTooLarge, match=r"^images of one request must count at most 256 pixels together, got 320"):
        predictor.predict(images[:5])


def test_what_is_refused_by_itself_takes_nothing_of_the_budget(bundle_dir: Path, images: list[bytes]) -> None:
    predictor = Predictor(Bundle.load(bundle_dir), threads=1, limits=Limits(max_pixels=64, max_request_pixels=64))

    large, small = predictor.predict([png(9, 9), images[0]])
    assert isinstance(large, ImageTooLarge)
    assert isinstance(small, dict)


def crowded_png(image: bytes) -> bytes:
    """With text that grows to megabytes, colour profiles that do, and a comment that is no text."""
    bomb = zlib.compress(bytes(2**21))
    more = [chunk(b"zTXt", b"Comment\0\0" + bomb), chunk(b"iCCP", b"name\0\0" + bomb), chunk(b"tEXt", b"\0\xff")]
    return image[:33] + b"".join(more) * 20 + image[33:]


def crowded_jpeg(image: bytes) -> bytes:
    """With EXIF in pieces, a profile that is none, an index of more images that are not there, and rubbish."""
    more = [
        segment(0xE1, b"Exif\0\0MM\0\x2a\0\0\0\x08\0\0"),
        segment(0xE1, b"Exif\0\0" + bytes(100)),
        segment(0xE2, b"ICC_PROFILE\0\1\2" + bytes(100)),
        segment(0xE2, b"MPF\0" + bytes(100)),
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM\0\0\0\0\0\0\0\0" * 100),
        segment(0xFE, b"hello"),
        b"rubbish",
    ]
    return image[:2] + b"".join(more) * 20 + image[2:]


@pytest.mark.parametrize(("kind", "crowded"), [("PNG", crowded_png), ("JPEG", crowded_jpeg)])
def test_what_the_pixels_do_not_need_is_not_read(kind: str, crowded: object, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = encoded(PIXELS, kind)
    full = crowded(plain)  # type: ignore[operator]

    kept = essentials(full, kind)
    if kept.plain is None:
        information = Image.open(io.BytesIO(kept.data)).info
        assert not {"icc_profile", "exif", "photoshop", "mp", "Comment", "comment"} & set(information)
    assert np.array_equal(decode(full, channels=3), decode(plain, channels=3))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WebP"])
def test_the_orientation_is_read_whatever_lies_around_it(kind: str) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x0132] = "maker", 6, "2026:01:01 00:00:00"
    data = encoded(PIXELS, kind, exif=exif)

    assert open_image(data).orientation == 6
    assert np.array_equal(decode(data, channels=3), np.rot90(decode(encoded(PIXELS, kind), channels=3), -1))


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"MM\0\x2a",
        b"XX\0\x2a\0\0\0\x08\0\1",
        b"MM\0\x2a\xff\xff\xff\xff",
        b"MM\0\x2a\0\0\0\x08\xff\xff" + bytes(12) * 9,
        b"MM\0\x2a\0\0\0\x08\0\1\x01\x12\0\7\0\0\0\1\0\6\0\0",  # of a type that is no number
    ],
)
def test_a_broken_orientation_leaves_the_image_as_it_is(exif: bytes) -> None:
    data = encoded(PIXELS, "PNG")

    assert open_image(data[:33] + chunk(b"eXIf", exif) + data[33:]).orientation == 1


def many_chunks(count: int) -> bytes:
    image = encoded(PIXELS)
    return image[:33] + chunk(b"teXt") * count + image[33:]


def many_segments(count: int) -> bytes:
    image = encoded(PIXELS, "JPEG")
    return image[:2] + segment(0xFE, b"") * count + image[2:]


@pytest.mark.parametrize("crowd", [many_chunks, many_segments])
def test_a_file_of_very_many_parts_is_refused(crowd: object) -> None:
    assert open_image(crowd(200)).picture.size == (31, 24)  # type: ignore[operator]
    data = crowd(100_000)  # type: ignore[operator]

    most = 256 + len(data) // 512
    with pytest.raises(ImageTooLarge, match=rf"^image of {len(data)} bytes must have at most {most} parts, got more$"):
        open_image(data)


def test_pixels_of_a_png_in_two_places_are_broken() -> None:
    image = encoded(PIXELS)
    twice = image[:-12] + chunk(b"tEXt", b"a\0b") + chunk(b"IDAT") + image[-12:]

    with pytest.raises(
        ServingError, match=r"^image must be a whole PNG image, got a broken one: pixels in two places$"
    ):
        open_image(twice)


def test_pixels_of_a_png_in_many_chunks_are_put_together() -> None:
    data = PngImagePlugin.Image.fromarray(PIXELS)
    whole = zlib.compress(b"".join(b"\0" + row.tobytes() for row in PIXELS))
    parts = b"".join(chunk(b"IDAT", whole[start : start + 50]) for start in range(0, len(whole), 50))
    split = encoded(PIXELS)[:33] + parts + chunk(b"IEND")

    assert np.array_equal(decode(split, channels=3), np.asarray(data))


@pytest.mark.parametrize("frame", [0xC3, 0xC9, 0xCA])
def test_a_jpeg_that_no_browser_shows_is_refused(frame: int) -> None:
    data = encoded(PIXELS, "JPEG").replace(b"\xff\xc0", bytes([0xFF, frame]))

    message = r"^JPEG must be baseline or progressive, got a lossless or arithmetic-coded one$"
    with pytest.raises(UnsupportedImage, match=message):
        open_image(data)
