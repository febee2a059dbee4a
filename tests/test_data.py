"""A data set: fingerprint, batches, augmentation and samples."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from serving.bundle import InputSpec
from training.data import Dataset, augment, batches, shrink, write_samples


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
