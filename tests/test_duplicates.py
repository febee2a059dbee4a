"""Duplicates: copies by their pixels, images that look alike by their thumbnails; counted, named, told."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_samples import FOLDER_DATA, digits, small_recipe, write_digit_folder

from serving.bundle import InputSpec
from training.data import Dataset, Sources
from training.duplicates import GRAY_LEVELS, find_duplicates, in_words, thumbnails
from training.images import load_images
from training.run import Run
from training.train import train

CPU = torch.device("cpu")
NOTHING = {
    "copies": 0,
    "of_two_classes": {"images": 0, "first": []},
    "in_two_splits": {"validation": 0, "test": 0},
    "alike": {"validation": 0, "test": 0},
    "first_alike": [],
}
SPLITS = {"train": torch.arange(40), "validation": torch.arange(40, 50), "test": torch.arange(50, 60)}


def photos(count: int = 60, side: int = 48) -> torch.Tensor:
    """Smooth colour images, no two alike, uint8 (count, 3, side, side)."""
    coarse = torch.from_numpy(np.random.default_rng(0).integers(50, 200, (count, 3, 6, 6)).astype(np.float32))
    return torch.nn.functional.interpolate(coarse, side, mode="bilinear").to(torch.uint8)


def dataset_of(images: torch.Tensor, files: tuple[str, ...] = ()) -> Dataset:
    spec = InputSpec(channels=3, height=images.shape[2], width=images.shape[3])
    return Dataset("made-up", images, torch.arange(len(images)) % 2, ("cat", "dog"), spec, files=files)


def as_jpeg(image: torch.Tensor, quality: int, side: int | None = None) -> torch.Tensor:
    """What is left of an image that was made smaller, stored as JPEG and made as large as before."""
    file, picture = io.BytesIO(), Image.fromarray(image.permute(1, 2, 0).numpy())
    small = picture if side is None else picture.resize((side, side), Image.Resampling.BICUBIC)
    small.save(file, "JPEG", quality=quality)
    read = Image.open(file).resize(picture.size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(read).copy()).permute(2, 0, 1)


def test_nothing_is_found_where_there_is_nothing() -> None:
    found = find_duplicates(dataset_of(photos()), SPLITS)

    assert found == NOTHING
    assert in_words(found) == []


def test_copies_are_counted_in_and_across_splits() -> None:
    images = photos()
    images[[2, 46, 52, 54]] = images[[0, 0, 0, 44]]

    found = find_duplicates(dataset_of(images), SPLITS)

    assert found == NOTHING | {"copies": 4, "in_two_splits": {"validation": 1, "test": 2}}
    assert in_words(found) == [
        "4 images have the pixels of an earlier one; 1 validation and 2 test images those of one in another split"
    ]


def test_copies_under_two_classes_are_named() -> None:
    images = photos()
    images[[3, 6, 9]] = images[[0, 0, 7]]
    named = dataset_of(images, tuple(f"{'cat' if n % 2 == 0 else 'dog'}/{n}.png" for n in range(60)))

    found, of_package = (find_duplicates(dataset, SPLITS) for dataset in (named, dataset_of(images)))

    assert found["copies"] == 3
    assert found["of_two_classes"] == {"images": 3, "first": [["cat/0.png", "dog/3.png", "cat/6.png"]]}
    assert in_words(found) == [
        "3 images have the pixels of an earlier one; all copies of one are in one split",
        "3 images have the same pixels under two classes: cat/0.png = dog/3.png = cat/6.png",
    ]
    assert of_package["of_two_classes"]["first"] == [["image 0 (cat)", "image 3 (dog)", "image 6 (cat)"]]


@pytest.mark.parametrize(("quality", "side"), [(95, None), (75, None), (90, 36), (75, 64)])
def test_photos_stored_again_look_alike(quality: int, side: int | None) -> None:
    images = photos()
    images[45], images[55], images[56] = (as_jpeg(images[n], quality, side) for n in (5, 6, 41))
    images[1] = as_jpeg(images[0], quality, side)  # both in training

    found = find_duplicates(dataset_of(images), SPLITS)

    assert found == NOTHING | {
        "alike": {"validation": 1, "test": 2},
        "first_alike": [[f"image {a} ({of})", f"image {b} ({of2})"] for a, of, b, of2 in (
            (45, "dog", 5, "dog"), (55, "dog", 6, "cat"), (56, "cat", 41, "dog"),
        )],
    }  # fmt: skip
    assert in_words(found)[0].startswith(
        "1 validation and 2 test images look like one of another split: image 45 (dog) ~ "
    )


def test_images_of_one_colour_are_alike_only_if_the_colour_is() -> None:
    images = photos()
    colours = {10: (200, 10, 20), 42: (10, 200, 20), 52: (202, 10, 20)}  # red, green, nearly the same red
    for position, colour in colours.items():
        images[position] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]

    found = find_duplicates(dataset_of(images), SPLITS)

    assert found == NOTHING | {
        "alike": {"validation": 0, "test": 1}, "first_alike": [["image 52 (cat)", "image 10 (cat)"]],
    }  # fmt: skip


def test_images_that_look_alike_are_those_that_all_pairs_give() -> None:
    noise = np.random.default_rng(1).normal(0, np.linspace(0, 12, 400)[:, None, None, None], (400, 3, 12, 12))
    images = (photos(40, 12).repeat(10, 1, 1, 1) + torch.from_numpy(noise)).clamp(0, 255).to(torch.uint8)
    images = images[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    splits = {"train": torch.arange(300), "validation": torch.arange(300, 340), "test": torch.arange(340, 400)}
    small = thumbnails(images).astype(np.float64)
    distances = np.sqrt(np.square(small[:, None] - small[None]).mean(2))

    found = find_duplicates(dataset_of(images), splits)

    expected = {
        name: int((distances[start:stop, :start].min(1) <= GRAY_LEVELS).sum())
        for name, start, stop in (("validation", 300, 340), ("test", 340, 400))
    }
    assert 0 < expected["test"] < 60
    assert found["alike"] == expected


def test_thumbnails_are_means_of_equal_parts() -> None:
    images = photos(3, 16)

    expected = images.double().reshape(3, 3, 8, 2, 8, 2).mean((3, 5)).flatten(1)

    np.testing.assert_allclose(thumbnails(images), expected, rtol=1e-6)


def test_digits_by_other_writers_are_no_duplicates() -> None:
    splits = load_images(small_recipe(), Sources()).splits

    assert find_duplicates(digits(), splits) == NOTHING


def test_folder_with_every_image_twice_is_cut_between_them_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_digit_folder(tmp_path / "twice")
    for file in sorted(folder.rglob("*.png")):
        (file.parent / f"copy of {file.name}").write_bytes(file.read_bytes())
    (folder / "0" / "odd.png").write_bytes(next(iter(sorted((folder / "1").iterdir()))).read_bytes())
    run = Run.create("small", small_recipe(data=FOLDER_DATA, fit={"epochs": 1}), "one", tmp_path / "runs")

    train(run, Sources(folder=folder), CPU)

    images = load_images(run.recipe, Sources(folder=folder))
    pixels = {name: {one.numpy().tobytes() for one in images.part(name, CPU).images} for name in images.splits}
    assert not pixels["test"] & (pixels["train"] | pixels["validation"])
    assert not pixels["validation"] & pixels["train"]
    found = run.description()["duplicates"]
    assert found == find_duplicates(images.dataset, images.splits)
    assert (found["copies"], found["in_two_splits"]) == (121, {"validation": 0, "test": 0})
    (names,) = found["of_two_classes"]["first"]
    assert names[0] == "0/odd.png"
    assert all(name.startswith("1/") for name in names[1:])
    told = capsys.readouterr()
    for line in in_words(found):
        assert line in told.err
