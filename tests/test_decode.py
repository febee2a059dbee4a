import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from conftest import encoded
from PIL import Image

from serving.decode import decode, open_image, read_pixels
from serving.errors import ImageError, ImageTooLarge, UnsupportedImage
from serving.essentials import PNG_START
from serving.limits import DEFAULT_LIMITS, Limits

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size; a kilobyte of zeros would grow to a megabyte of pixels."""
    header = chunk(b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT" + zlib.compress(bytes(2**20))) + chunk(b"IEND")


def chunk(body: bytes) -> bytes:
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WebP", {"lossless": True})])
def test_lossless_types_give_the_pixels_that_were_saved(kind: str, options: dict[str, object]) -> None:
    assert np.array_equal(decode(encoded(RGB, kind, **options), channels=3), RGB)


def test_gray_png_has_one_channel_and_may_be_written_to() -> None:
    image = decode(encoded(GRAY), channels=1)

    assert image.dtype == np.uint8
    assert np.array_equal(image, GRAY[:, :, None])
    assert image.flags.writeable


def test_jpeg_is_close_to_what_was_saved() -> None:
    smooth = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (32, 1))

    assert np.abs(decode(encoded(smooth, "JPEG", quality=95), channels=1)[:, :, 0].astype(int) - smooth).max() <= 4


def test_gray_becomes_rgb_and_rgb_becomes_luma() -> None:
    luma = RGB @ np.array([0.299, 0.587, 0.114])

    assert np.array_equal(decode(encoded(GRAY), channels=3), np.repeat(GRAY[:, :, None], 3, 2))
    assert np.abs(decode(encoded(RGB), channels=1)[:, :, 0] - luma).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    turned = {
        1: GRAY,
        2: GRAY[:, ::-1],
        3: GRAY[::-1, ::-1],
        4: GRAY[::-1],
        5: GRAY.T,
        6: np.rot90(GRAY),  # shown after a quarter turn clockwise, so stored a quarter turn anticlockwise
        7: GRAY[::-1, ::-1].T,
        8: np.rot90(GRAY, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation

    assert np.array_equal(decode(encoded(turned, exif=exif), channels=1)[:, :, 0], GRAY)


def test_broken_exif_does_not_cost_the_answer() -> None:
    assert np.array_equal(decode(encoded(GRAY, exif=b"Exif\0\0nonsense"), channels=1)[:, :, 0], GRAY)


def test_16_bit_gray_is_scaled_not_clipped() -> None:
    deep = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)

    assert decode(saved(Image.fromarray(deep)), channels=1).ravel().tolist() == [0, 0, 1, 128, 255]


def test_1_bit_is_black_and_white() -> None:
    bits = Image.fromarray(GRAY > 127)

    assert np.array_equal(decode(saved(bits), channels=1)[:, :, 0], np.where(GRAY > 127, 255, 0))


def test_palette_is_looked_up() -> None:
    image = Image.fromarray((GRAY % 2).astype(np.uint8))
    image.putpalette([10, 20, 30, 200, 100, 50])

    expected = np.array([[10, 20, 30], [200, 100, 50]], dtype=np.uint8)[GRAY % 2]
    assert np.array_equal(decode(saved(image), channels=3), expected)


@pytest.mark.parametrize("background", [0, 255])
def test_transparent_pixels_show_the_background(background: int) -> None:
    half = Image.fromarray(np.array([[[100, 0], [100, 255], [100, 51]]], dtype=np.uint8))

    expected = [background, 100, round(100 * 0.2 + background * 0.8)]
    assert decode(saved(half), channels=1, background=background).ravel().tolist() == expected


@pytest.mark.parametrize("mode", ["P", "L", "1", "I;16", "RGB"])
def test_a_transparent_colour_shows_the_background(mode: str) -> None:
    white = Image.fromarray(np.full((1, 2), 65535, dtype=np.uint16)) if mode == "I;16" else Image.new(mode, (2, 1), 0)
    key: object = {"I;16": 65535, "RGB": (0, 0, 0)}.get(mode, 0)

    assert decode(saved(white, transparency=key), channels=1, background=77).ravel().tolist() == [77, 77]


def test_cmyk_jpeg_is_shown_as_it_was_painted() -> None:
    painted = Image.new("RGB", (16, 16), (200, 60, 20))

    image = decode(saved(painted.convert("CMYK"), "JPEG", quality=95), channels=3)
    assert np.abs(image.astype(int) - [200, 60, 20]).max() <= 6


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("white", "black")]

    data = saved(frames[0], "WebP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode(data, channels=1).min() == 255


def test_an_open_image_is_read_once() -> None:
    opened = open_image(encoded(GRAY, "JPEG"))
    read_pixels(opened, channels=1)

    with pytest.raises(ImageError, match=r"got a broken one: Operation on closed image$"):
        read_pixels(opened, channels=1)


def test_no_bytes() -> None:
    with pytest.raises(ImageError, match=r"^image must not be empty, got 0 bytes$"):
        decode(b"", channels=1)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_types_are_refused_and_named_by_their_first_bytes(kind: str) -> None:
    data = encoded(GRAY, kind)

    with pytest.raises(
        UnsupportedImage, match=r"^image must be PNG, JPEG or WebP, got bytes that start with b'"
    ) as info:
        decode(data, channels=1)
    assert repr(data[:8]) in str(info.value)
    assert info.value.status == 415


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WebP"])
def test_a_truncated_image_is_broken(kind: str) -> None:
    data = encoded(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), kind)

    for length in (13, 30, len(data) // 2):
        with pytest.raises(ImageError, match=rf"^image must be a whole {kind} image, got a broken one: ") as info:
            decode(data[:length], channels=3)
        assert (info.value.status, info.value.code) == (400, "undecodable_image")


def test_a_flipped_bit_in_a_png_is_broken() -> None:
    data = bytearray(encoded(RNG.integers(0, 256, (64, 64), dtype=np.uint8)))
    data[len(data) // 2] ^= 1

    with pytest.raises(ImageError, match=r"^image must be a whole PNG image, got a broken one: wrong CRC in IDAT$"):
        decode(bytes(data), channels=1)


def test_a_broken_header_is_told_in_words() -> None:
    with pytest.raises(ImageError, match=r"^image must be a whole JPEG image, got a broken one: unreadable header$"):
        decode(b"\xff\xd8\xff nothing", channels=1)


def test_a_png_without_its_end_is_truncated() -> None:
    with pytest.raises(ImageError, match=r"^image must be a whole PNG image, got a broken one: truncated$"):
        decode(encoded(GRAY)[:-12], channels=1)


def test_too_many_bytes() -> None:
    data = encoded(GRAY)

    with pytest.raises(ImageTooLarge, match=rf"^image must have at most 10 bytes, got {len(data)}$") as info:
        decode(data, channels=1, limits=Limits(max_bytes=10))
    assert info.value.status == 413


def test_too_many_pixels_are_refused_by_the_header_alone() -> None:
    with pytest.raises(ImageTooLarge, match=r"^image must have at most 40000000 pixels, got 8000 x 5001$"):
        decode(png_bomb(8000, 5001), channels=1)


@pytest.mark.parametrize("side", [10_000, 20_000, 2**31 - 1])
def test_a_decompression_bomb_is_too_large(side: int) -> None:
    with pytest.raises(ImageTooLarge, match=r"^image must have at most 40000000 pixels, got "):
        decode(png_bomb(side, side), channels=1)


def test_limits_are_ten_mebibytes_and_forty_megapixels() -> None:
    assert (DEFAULT_LIMITS.max_bytes, DEFAULT_LIMITS.max_pixels) == (10 * 2**20, 40_000_000)


def test_mutated_images_raise_nothing_but_image_errors() -> None:
    originals = [encoded(RGB, kind) for kind in ("PNG", "JPEG", "WebP")]
    for _ in range(600):
        data = bytearray(originals[RNG.integers(3)])
        for place in RNG.integers(12, len(data), RNG.integers(1, 4)):
            data[place] = RNG.integers(256)
        with contextlib.suppress(ImageError):
            assert decode(bytes(data), channels=3).shape[2] == 3


def png_of(width: int, height: int, rows: bytes, colour: int = 0) -> bytes:
    """A PNG of 8 bits whose compressed rows are `rows`, whatever these are."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return PNG_START + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


ROWS = b"".join(b"\0" + bytes(range(12)) for _ in range(9))
WHOLE = zlib.compress(ROWS)


@pytest.mark.parametrize(
    ("size", "rows"),
    [
        ((12, 9), WHOLE),
        ((12, 20), WHOLE),
        ((12, 4), WHOLE),
        ((4, 9), zlib.compress(ROWS)),
        ((12, 9), WHOLE[:20]),
        ((12, 9), WHOLE[:-3]),
        ((12, 9), WHOLE[:-4] + bytes(4)),
        ((12, 9), WHOLE + b"more"),
        ((12, 9), zlib.compress(ROWS.replace(b"\0", b"\x09"))),
        ((12, 9), b"no rows"),
        ((12, 9), b""),
        ((0, 9), WHOLE),
    ],
)
@pytest.mark.parametrize("colour", [0, 2])
def test_a_plain_png_is_what_pillow_makes_of_it(size: tuple[int, int], rows: bytes, colour: int) -> None:
    data = png_of(*size, rows, colour)
    try:
        wanted = np.asarray(Image.open(io.BytesIO(data))).reshape(size[1], size[0], -1)
    except (OSError, SyntaxError, ValueError):
        with pytest.raises(ImageError, match=r"^image must be a whole PNG image, got a broken one: "):
            decode(data, channels=3 if colour else 1)
    else:
        assert np.array_equal(decode(data, channels=3 if colour else 1), wanted)
