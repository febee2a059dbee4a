"""Strangers: drawn images are what their names say, in every shape, and the same for the same seed."""

import importlib.util
import io
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch
from PIL import Image
from training_samples import digits

from serving.bundle import InputSpec
from serving.preprocess import read_image
from training.data import DataError
from training.strangers import DRAWN, drawn, in_channels, inverted, upside_down

SPECS = [
    InputSpec(channels=1, height=8, width=8),
    InputSpec(channels=3, height=32, width=32),
    InputSpec(channels=3, height=40, width=64),
]
COLOUR = SPECS[1]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.channels}x{spec.height}x{spec.width}")
@pytest.mark.parametrize("name", DRAWN)
def test_images_have_the_shape_that_a_model_takes_and_are_repeatable(name: str, spec: InputSpec) -> None:
    images = drawn(name, spec, count=4, seed=5)

    assert images.dtype == torch.uint8
    assert images.shape == (4, spec.channels, spec.height, spec.width)
    assert torch.equal(images, drawn(name, spec, count=4, seed=5))
    if name not in ("black", "white", "gray"):
        assert len({image.numpy().tobytes() for image in images}) >= 3
        assert not torch.equal(images, drawn(name, spec, count=4, seed=6))


@pytest.mark.parametrize(("name", "level"), [("black", 0), ("white", 255), ("gray", 128)])
def test_plain_images_are_of_their_level(name: str, level: int) -> None:
    assert (drawn(name, COLOUR, 2, 0) == level).all()


def test_flat_images_are_of_one_colour_each() -> None:
    images = drawn("flat", COLOUR, 50, 0)

    assert (images == images[:, :, :1, :1]).all()
    assert (images[:, 0, 0, 0] != images[:, 1, 0, 0]).any()


def test_noise_is_uniform() -> None:
    noise = drawn("noise", COLOUR, 20, 0)

    counts = torch.bincount(noise.flatten().int(), minlength=256).double()
    assert counts.min() > 0
    assert noise.double().mean().item() == pytest.approx(127.5, abs=1)
    assert np.corrcoef(noise[:, :, :, :-1].flatten(), noise[:, :, :, 1:].flatten())[0, 1] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("name", ["stripes", "checkerboard"])
def test_patterns_are_of_a_dark_and_a_light_colour(name: str) -> None:
    for image in drawn(name, COLOUR, 20, 1):
        colours = image.flatten(1).T.unique(dim=0)
        assert len(colours) == 2
        assert (colours[0] <= 99).all()
        assert (colours[1] >= 156).all()


def test_squares_run_in_two_directions() -> None:
    """A checkerboard is its first row and its first column, added modulo 2."""
    for image in drawn("checkerboard", COLOUR, 20, 1):
        light = (image[0] > 127).int()
        assert torch.equal(light, (light[:1] + light[:, :1] + light[0, 0]) % 2)


def test_gradients_rise_steadily_from_dark_to_light() -> None:
    for image in drawn("gradients", COLOUR, 20, 1).int():
        for dim in (1, 2):
            signs = image.diff(dim=dim).sign().unique().tolist()
            assert not {-1, 1} <= set(signs)  # one direction only
        assert (image.amin((1, 2)) <= 100).all()
        assert (image.amax((1, 2)) >= 156).all()


def test_pages_of_text_are_mostly_white_with_ink_in_lines() -> None:
    large = InputSpec(channels=1, height=224, width=224)

    for page in drawn("text", large, 5, 0)[:, 0].double() / 255:
        assert 0.5 < page.mean() < 0.95
        assert page.min() < 0.1
        assert page.max() == 1
        assert page.mean(1).max() - page.mean(1).min() > 0.1  # lines and the white between them


def test_textures_are_parts_of_photographs() -> None:
    for image in drawn("textures", COLOUR, 10, 0).double():
        assert torch.equal(image[0], image[2])  # the photographs are gray
        assert image.std() > 5


def test_textures_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def without_skimage(module: str) -> ModuleSpec | None:
        return None if module == "skimage" else found(module)

    monkeypatch.setattr(importlib.util, "find_spec", without_skimage)

    with pytest.raises(
        DataError, match=r"^scikit-image must be installed for the photo (grass|gravel|bricks), got none"
    ):
        drawn("textures", COLOUR, 1, 0)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(DataError, match=r"^drawn images must be black, white, .*, textures, got 'cats'$"):
        drawn("cats", COLOUR, 1, 0)


def test_images_are_turned_and_inverted() -> None:
    images = digits().images[:3]

    np.testing.assert_array_equal(upside_down(images), np.rot90(images.numpy(), 2, axes=(2, 3)))
    assert torch.equal(upside_down(upside_down(images)), images)
    assert inverted(images).int().add(images.int()).unique().tolist() == [255]


@pytest.mark.parametrize(("from_channels", "to_channels"), [(1, 3), (3, 1), (3, 3)])
def test_channels_are_those_that_a_server_makes(from_channels: int, to_channels: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, from_channels, 6, 5), dtype=np.uint8)
    spec = InputSpec.model_validate({"channels": to_channels, "height": 6, "width": 5})

    made = in_channels(torch.from_numpy(pixels), to_channels)

    for image, found in zip(pixels, made, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(file, "PNG")
        np.testing.assert_array_equal(found, read_image(file.getvalue(), spec))
