"""A data set: fingerprint, batches and samples."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from serving.bundle import InputSpec
from training.data import Dataset, batches, write_samples


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def made_up(labels: Tensor, test_start: int | None = None) -> Dataset:
    images = torch.from_numpy(noise(len(labels), 1, 4, 4))
    spec = InputSpec(channels=1, height=4, width=4)
    return Dataset("made-up", images, labels, ("a", "b", "c"), spec, test_start)


def test_fingerprint_changes_with_a_pixel_and_with_a_label() -> None:
    dataset = made_up(torch.tensor([0, 1, 2]))
    before = dataset.fingerprint()

    assert re.fullmatch("[0-9a-f]{64}", before)
    assert made_up(torch.tensor([0, 1, 2])).fingerprint() == before
    assert made_up(torch.tensor([0, 2, 1])).fingerprint() != before
    dataset.images[1, 0, 2, 2] ^= 1
    assert dataset.fingerprint() != before


LABELS = torch.arange(600) % 3


# Batches


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
