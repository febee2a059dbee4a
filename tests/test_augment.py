"""Augmentation: what changes in an image, and that a seed decides it."""

import math

import numpy as np
import pytest
import torch

from serving.bundle import InputSpec
from serving.preprocess import to_input
from training.augment import augment, random_resized_crop, resized, shrink


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_shrinks_to_the_same_pixels() -> None:
    images = torch.from_numpy(noise(4, 3, 32, 32))

    off = shrink(images.cuda(), 0.75).cpu().int() - shrink(images, 0.75).int()

    assert off.abs().max() <= 1  # bytes are summed up in fixed point on a CPU


def test_augmentation_is_decided_by_the_generator() -> None:
    images = torch.from_numpy(noise(30, 1, 6, 6))

    first, again, other = (augment(images, crop_padding=2, flip=True, cutout=2, generator=seeded(s)) for s in (4, 4, 5))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# Random resized crops


def coordinates(count: int, height: int, width: int) -> torch.Tensor:
    """Images whose two channels say where each pixel's centre is, as shares of the height and the width."""
    down = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    across = ((torch.arange(width) + 0.5) / width)[None].expand(height, width)
    return torch.stack([down, across]).expand(count, 2, height, width)


def boxes_of(crops: torch.Tensor) -> torch.Tensor:
    """Top, bottom, left and right (N, 4) of crops of `coordinates`, read off the slopes at their middles."""
    height, width = crops.shape[2:]
    edges = []
    for channel, length in ((crops[:, 0, :, width // 2], height), (crops[:, 1, height // 2], width)):
        slope = channel[:, length // 2] - channel[:, length // 2 - 1]
        middle = (channel[:, length // 2] + channel[:, length // 2 - 1]) / 2
        edges += [middle - slope * length / 2, middle + slope * length / 2]
    return torch.stack(edges, 1)


def test_boxes_have_the_asked_areas_and_aspects_and_lie_anywhere_inside() -> None:
    height, width, scale = 48, 36, 0.25

    crops = random_resized_crop(coordinates(2000, height, width), (32, 32), scale=scale, generator=seeded(1))

    top, bottom, left, right = boxes_of(crops).unbind(1)
    tall, wide = bottom - top, right - left
    assert min(top.min(), left.min()) > -1e-4
    assert max(bottom.max(), right.max()) < 1 + 1e-4
    uncut = (tall < 0.999) & (wide < 0.999)
    area, ratio = (tall * wide)[uncut], (wide * width / (tall * height))[uncut]
    assert scale - 1e-3 < area.min() < scale + 0.02
    assert 3 / 4 - 1e-3 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 4 / 3 + 1e-3
    assert ratio.log().mean().abs() < 0.05
    place = (left / (1 - wide))[uncut]
    assert torch.histc(place, 4, 0, 1).min() > 0.2 * uncut.sum()
    assert ((tall * wide)[~uncut] > 0.5).all()


def test_area_is_uniform_between_the_scale_and_the_whole() -> None:
    """Square boxes of square images are never cut."""
    crops = random_resized_crop(coordinates(4000, 32, 32), (16, 16), scale=0.2, aspect=(1.0, 1.0), generator=seeded(2))

    top, bottom, left, right = boxes_of(crops).unbind(1)
    area = ((bottom - top) * (right - left)).sort().values
    uniform = torch.linspace(0.2, 1, 4000)
    assert (area - uniform).abs().max() < 0.8 * 1.95 / math.sqrt(4000)  # Kolmogorov and Smirnov at 0.1 %
    torch.testing.assert_close(bottom - top, right - left, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("own", "size"), [((8, 8), (32, 32)), ((8, 12), (24, 24)), ((16, 16), (16, 16))])
def test_box_of_the_whole_image_is_a_plain_resize(own: tuple[int, int], size: tuple[int, int]) -> None:
    images = torch.from_numpy(noise(5, 3, *own))
    aspect = own[1] / own[0]

    crops = random_resized_crop(images, size, scale=1.0, aspect=(aspect, aspect), generator=seeded())

    plain = torch.nn.functional.interpolate(images.float(), size, mode="bilinear")
    assert crops.dtype == torch.float32
    torch.testing.assert_close(crops, plain, rtol=0, atol=1e-2)


def test_crops_are_decided_by_the_generator() -> None:
    images = torch.from_numpy(noise(10, 3, 8, 8))

    first, again, other = (random_resized_crop(images, (8, 8), scale=0.3, generator=seeded(s)) for s in (4, 4, 5))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("own", "side"), [(8, 32), (32, 96), (40, 16)])
def test_whole_images_are_resized_as_a_server_does_it(own: int, side: int) -> None:
    """Pillow works in fixed point and rounds after each direction."""
    images = torch.from_numpy(noise(4, 3, own, own))
    spec = InputSpec(channels=3, height=side, width=side)

    ours = resized(images, (side, side))

    served = np.stack([to_input(image.permute(1, 2, 0).numpy(), spec) for image in images])
    assert (ours - torch.from_numpy(served)).abs().max() < 1.5


def test_images_of_the_right_size_stay_as_they_are() -> None:
    images = torch.from_numpy(noise(4, 3, 8, 8))

    assert resized(images, (8, 8)) is images
