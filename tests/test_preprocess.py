import numpy as np
import pytest
from conftest import encoded
from PIL import Image, ImageOps

from serving.bundle import InputSpec
from serving.decode import decode
from serving.preprocess import read_image, to_input

RNG = np.random.default_rng(0)


def spec(height: int, width: int, channels: int = 3, resize: str = "crop") -> InputSpec:
    return InputSpec(channels=channels, height=height, width=width, resize=resize)


def test_the_right_size_keeps_every_pixel() -> None:
    image = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)

    fitted = to_input(image, spec(6, 9))
    assert np.array_equal(fitted, image.transpose(2, 0, 1))
    assert fitted.flags.c_contiguous


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (7, 100), (12, 12), (3, 2)])
def test_crop_is_what_imageops_fit_does(size: tuple[int, int]) -> None:
    image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)

    expected = ImageOps.fit(Image.fromarray(image), (16, 12), Image.Resampling.BILINEAR)
    assert np.abs(to_input(image, spec(12, 16)).transpose(1, 2, 0).astype(int) - np.asarray(expected)).max() <= 1


def test_crop_cuts_the_centre() -> None:
    image = np.zeros((4, 12, 1), dtype=np.uint8)
    image[:, 4:8] = 200

    assert (to_input(image, spec(4, 4, 1)) == 200).all()


def test_stretch_keeps_the_whole() -> None:
    image = np.zeros((4, 12, 1), dtype=np.uint8)
    image[:, 4:8] = 200

    # A triangle of half-width 4 over the pixels, by hand: 200 * 0.5 / 3.5 at the sides, 200 * 3 / 4 in the middle.
    assert to_input(image, spec(4, 3, 1, "stretch"))[0, 0].tolist() == [29, 150, 29]


def test_downscaling_averages() -> None:
    checkers = np.indices((64, 64)).sum(0)[:, :, None] % 2 * 255

    assert np.abs(to_input(checkers.astype(np.uint8), spec(8, 8, 1)).astype(int) - 127.5).max() < 8


@pytest.mark.parametrize("resize", ["crop", "stretch"])
@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (1, 1)])
def test_extreme_shapes(size: tuple[int, int], resize: str) -> None:
    fitted = to_input(np.full((*size, 3), 90, dtype=np.uint8), spec(8, 16, resize=resize))

    assert fitted.shape == (3, 8, 16)
    assert (fitted == 90).all()


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), dtype=np.uint8)])
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^image must be uint8 \(H, W, 3\), got "):
        to_input(image, spec(4, 4))


def photo(height: int, width: int) -> np.ndarray:
    """Smooth patches of colour with grain on them, as a camera sees things."""
    patches = RNG.integers(0, 256, (height // 80 + 2, width // 80 + 2, 3), dtype=np.uint8)
    smooth = Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)
    return (np.asarray(smooth) + RNG.normal(0, 8, (height, width, 3))).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("resize", ["crop", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1200, 1600), (1600, 1100), (700, 3000)])
def test_a_large_jpeg_is_read_as_if_all_of_it_were_decoded(size: tuple[int, int], channels: int, resize: str) -> None:
    wanted = spec(64, 64, channels, resize)
    data = encoded(photo(*size), "JPEG", quality=90)
    assert max(decode(data, channels=channels, wanted=(64, 64)).shape) < max(size) / 2

    difference = read_image(data, wanted).astype(int) - to_input(decode(data, channels=channels), wanted)
    assert np.abs(difference).mean() < 1.5  # of 255 gray levels
    assert np.abs(difference).max() <= 12


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_on_its_side_keeps_twice_the_size_that_is_wanted(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(400, 1600), "JPEG", exif=exif)

    height, width, _ = decode(data, channels=3, wanted=(50, 200) if orientation == 1 else (200, 50)).shape
    assert (height, width) == ((100, 400) if orientation == 1 else (400, 100))


def test_a_small_jpeg_is_read_whole() -> None:
    data = encoded(photo(100, 100), "JPEG")

    assert np.array_equal(decode(data, channels=3, wanted=(64, 64)), decode(data, channels=3))
