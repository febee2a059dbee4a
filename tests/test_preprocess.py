import numpy as np
import pytest
from PIL import Image, ImageOps

from serving.bundle import InputSpec
from serving.preprocess import fit

RNG = np.random.default_rng(0)


def spec(height: int, width: int, channels: int = 3, resize: str = "crop") -> InputSpec:
    return InputSpec(channels=channels, height=height, width=width, resize=resize)


def test_the_right_size_keeps_every_pixel() -> None:
    image = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)

    fitted = fit(image, spec(6, 9))
    assert np.array_equal(fitted, image.transpose(2, 0, 1))
    assert fitted.flags.c_contiguous


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (7, 100), (12, 12), (3, 2)])
def test_crop_is_what_imageops_fit_does(size: tuple[int, int]) -> None:
    image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)

    expected = ImageOps.fit(Image.fromarray(image), (16, 12), Image.Resampling.BILINEAR)
    assert np.abs(fit(image, spec(12, 16)).transpose(1, 2, 0).astype(int) - np.asarray(expected)).max() <= 1


def test_crop_cuts_the_centre() -> None:
    image = np.zeros((4, 12, 1), dtype=np.uint8)
    image[:, 4:8] = 200

    assert (fit(image, spec(4, 4, 1)) == 200).all()


def test_stretch_keeps_the_whole() -> None:
    image = np.zeros((4, 12, 1), dtype=np.uint8)
    image[:, 4:8] = 200

    # A triangle of half-width 4 over the pixels, by hand: 200 * 0.5 / 3.5 at the sides, 200 * 3 / 4 in the middle.
    assert fit(image, spec(4, 3, 1, "stretch"))[0, 0].tolist() == [29, 150, 29]


def test_downscaling_averages() -> None:
    checkers = np.indices((64, 64)).sum(0)[:, :, None] % 2 * 255

    assert np.abs(fit(checkers.astype(np.uint8), spec(8, 8, 1)).astype(int) - 127.5).max() < 8


@pytest.mark.parametrize("resize", ["crop", "stretch"])
@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (1, 1)])
def test_extreme_shapes(size: tuple[int, int], resize: str) -> None:
    fitted = fit(np.full((*size, 3), 90, dtype=np.uint8), spec(8, 16, resize=resize))

    assert fitted.shape == (3, 8, 16)
    assert (fitted == 90).all()


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), dtype=np.uint8)])
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^image must be uint8 \(H, W, 3\), got "):
        fit(image, spec(4, 4))
