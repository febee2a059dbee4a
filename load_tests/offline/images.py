"""The images that offline scoring is measured on: MNIST's digits as PNGs and made-up photos as JPEGs.

    images = make_digits(Path("data/bench-batch"), count=100_000)
    images.files, images.tars

Everything is seeded, so the same numbers of images mean the same bytes. A set is there as files in subfolders and as
tar shards. A set that is whole is used again; one that is not, because a command was killed, is made anew.
"""

import json
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.files import replace_text

WHOLE = "whole.json"  # what a set was made from; written when all of it is there
FOLDERS = 100  # that a set's files are spread over
DIGITS_A_TAR, PHOTOS_A_TAR = 1_000, 100
SCENES = 4  # pictures that all photos are cut from
SCENE_SIDES = (3_100, 4_100)  # height and width in pixels: the largest photo fits in, either way up
MEGAPIXELS = (2.0, 12.0)
ASPECT = 4 / 3
QUALITY = 88  # of the JPEGs, which makes 0.2 to 0.5 bytes a pixel of them, as cameras do
TEXTURE = 9.0  # how strong the fine texture is, in gray levels
TILE = 1_000  # pixels after which it repeats itself


@dataclass(frozen=True)
class ImageSet:
    """One set of images, twice.

    Attributes:
        files: folder with the images in subfolders.
        tars: folder with the same images in tar files.
        count: how many.
        words: what they are, for people.
    """

    files: Path
    tars: Path
    count: int
    words: str

    def paths(self) -> list[Path]:
        """The files, in the order of their names."""
        return sorted(path for path in self.files.rglob("*") if path.is_file())


def make_digits(scratch: Path, count: int, seed: int = 0) -> ImageSet:
    """Make the PNGs, or find them whole."""
    made = ImageSet(scratch / "png", scratch / "png-tar", count, f"{count:,} PNGs of 28 x 28 pixels")
    return _make(made, DIGITS_A_TAR, {"digits": count, "seed": seed}, partial(_write_digits, count, seed))


def make_photos(scratch: Path, count: int, seed: int = 0) -> ImageSet:
    """Make the JPEGs, or find them whole."""
    made = ImageSet(scratch / "jpeg", scratch / "jpeg-tar", count, f"{count:,} JPEGs of 2 to 12 megapixels")
    return _make(made, PHOTOS_A_TAR, {"photos": count, "seed": seed}, partial(_write_photos, count, seed))


def _make(made: ImageSet, in_a_tar: int, recipe: dict[str, int], write: Callable[[Path], None]) -> ImageSet:
    mark, wanted = made.tars / WHOLE, json.dumps(recipe)
    if mark.is_file() and mark.read_text() == wanted:
        return made
    for folder in (made.tars, made.files):  # the mark goes first
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    write(made.files)
    _pack(made, in_a_tar)
    replace_text(mark, wanted)
    return made


def _place(folder: Path, index: int, count: int, suffix: str) -> Path:
    """Where an image lies: its neighbours by number lie in the same subfolder."""
    return folder / f"{index * FOLDERS // count:02d}" / f"{index:07d}{suffix}"


def _write_digits(count: int, seed: int, folder: Path) -> None:
    """All of MNIST in a random order, and again until there are enough."""
    from training.data import Sources
    from training.datasets import load_dataset
    from training.recipe import DataSpec

    pixels = load_dataset(DataSpec(name="mnist"), Sources()).images[:, 0].numpy()
    order = np.random.default_rng(seed).permutation(len(pixels))
    for index in range(count):
        file = _place(folder, index, count, ".png")
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[order[index % len(order)]]).save(file)


def _write_photos(count: int, seed: int, folder: Path) -> None:
    """Cuts of a few scenes, each of another size and place; one process a core, a scene each."""
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        tasks = [pool.submit(_write_cuts, scene, count, seed, folder) for scene in range(min(SCENES, count))]
        for task in tasks:
            task.result()


def _write_cuts(scene: int, count: int, seed: int, folder: Path) -> None:
    random = np.random.default_rng((seed, scene))
    picture = Image.fromarray(make_scene(random))
    for index in range(scene, count, SCENES):
        width = round((1e6 * random.uniform(*MEGAPIXELS) * ASPECT) ** 0.5)
        sides = width, round(width / ASPECT)
        left, top = (int(random.integers(most - side + 1)) for most, side in zip(picture.size, sides, strict=True))
        cut = picture.crop((left, top, left + sides[0], top + sides[1]))
        if random.random() < 0.5:  # taken upright
            cut = cut.transpose(Image.Transpose.ROTATE_90)
        file = _place(folder, index, count, ".jpg")
        file.parent.mkdir(exist_ok=True)
        cut.save(file, quality=QUALITY)


def make_scene(random: np.random.Generator, sides: Sequence[int] = SCENE_SIDES) -> NDArray[np.uint8]:
    """Something like a photo, (H, W, 3): smooth colours, and fine texture that is strong in some places only."""
    height, width = sides
    clouds = [2 * cell**0.5 * _noise(random, height // 8, width // 8, cell, 3) for cell in (2, 4, 8, 16, 32, 64, 128)]
    grain = sum(_noise(random, TILE, TILE, cell, 1) * cell**0.5 for cell in (1, 2, 4))
    where = np.maximum(_noise(random, height // 8, width // 8, 64, 1), 0) + 0.2
    texture = np.tile(grain, (height // TILE + 1, width // TILE + 1, 1))[:height, :width]
    picture = (
        128 + _enlarged(np.sum(clouds, axis=0), height, width) + TEXTURE * texture * _enlarged(where, height, width)
    )
    return np.clip(picture, 0, 255).astype(np.uint8)


def _noise(random: np.random.Generator, height: int, width: int, cell: int, channels: int) -> NDArray[np.float32]:
    """Smooth noise, (height, width, channels), standard normal at the corners of cells of so many pixels."""
    grid = random.standard_normal((height // cell + 2, width // cell + 2, channels), np.float32)
    return _enlarged(grid, height, width, (0, 0, width / cell, height / cell))


def _enlarged(
    picture: NDArray[Any], height: int, width: int, box: tuple[float, float, float, float] | None = None
) -> NDArray[np.float32]:
    bands = [Image.fromarray(picture[:, :, channel]) for channel in range(picture.shape[2])]
    return np.stack([np.asarray(band.resize((width, height), Image.Resampling.BICUBIC, box)) for band in bands], axis=2)


def _pack(made: ImageSet, in_a_tar: int) -> None:
    paths = made.paths()
    for start in range(0, len(paths), in_a_tar):
        with tarfile.open(made.tars / f"{start // in_a_tar:05d}.tar", "w") as tar:
            for path in paths[start : start + in_a_tar]:
                tar.add(path, path.relative_to(made.files).as_posix())
