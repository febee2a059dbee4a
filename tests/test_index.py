"""The index of a folder: what a pass over its files finds, what is read again, and what a killed pass leaves."""

import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_samples import write_digit_folder

from serving.bundle import InputSpec
from training import image_files
from training.data import Sources
from training.datasets import load_dataset
from training.duplicates import find_duplicates, thumbnails
from training.image_files import digests_of, in_memory
from training.index import MOST_FILES, ListedFile, cut
from training.recipe import DataSpec
from training.splits import copies_of, split

GRAY = DataSpec(name="folder", channels=1, size=8)


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """120 digits of three classes, and a cache that knows none of them."""
    return Sources(folder=write_digit_folder(tmp_path / "digits"), cache=tmp_path / "cache")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    names: list[str] = []
    plain = Path.read_bytes

    def noting(file: Path) -> bytes:
        names.append(file.name)
        return plain(file)

    monkeypatch.setattr(Path, "read_bytes", noting)
    return names


def test_index_knows_what_the_pixels_give(sources: Sources) -> None:
    dataset = load_dataset(GRAY, sources)

    pixels = in_memory(dataset.images)
    np.testing.assert_array_equal(digests_of(dataset.images), digests_of(pixels))
    np.testing.assert_allclose(thumbnails(dataset.images), thumbnails(pixels), atol=0.07)  # halves in 8 and 4 bits
    np.testing.assert_array_equal(copies_of(dataset.images), copies_of(pixels))


def test_splits_and_duplicates_of_files_are_those_of_their_pixels(sources: Sources) -> None:
    first = sorted((sources.folder or Path()).rglob("*.png"))[0]
    (first.parent.parent / "1" / "copy.png").write_bytes(first.read_bytes())
    of_files = load_dataset(GRAY, sources)
    of_pixels = replace(of_files, images=in_memory(of_files.images))

    parts, expected = (split(data, validation=0.2, test=0.2, seed=3) for data in (of_files, of_pixels))

    assert all(torch.equal(parts[name], expected[name]) for name in expected)
    found = find_duplicates(of_files, parts)
    assert found == find_duplicates(of_pixels, expected)
    assert found["of_two_classes"]["images"] == 2


def test_nothing_is_read_twice(sources: Sources, read: list[str]) -> None:
    first = load_dataset(GRAY, sources)
    assert len(read) == 120

    again = load_dataset(GRAY, sources)

    assert len(read) == 120
    assert again.fingerprint() == first.fingerprint()
    load_dataset(GRAY.model_copy(update={"size": 9}), sources)
    assert len(read) == 240


@pytest.mark.parametrize("change", ["time", "size"])
def test_file_that_changes_is_read_again(change: str, sources: Sources, read: list[str]) -> None:
    before = load_dataset(GRAY, sources)
    file = (sources.folder or Path()) / before.files[50]
    time = file.stat().st_mtime_ns
    Image.effect_noise((8, 8), 50).save(file)
    os.utime(file, ns=(time, time + 1 if change == "time" else time))
    read.clear()

    after = load_dataset(GRAY, sources)

    assert file.name in read
    assert len(read) <= 40  # its class, at most
    assert after.fingerprint() != before.fingerprint()


def test_pass_that_was_broken_off_goes_on(sources: Sources, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "cores", lambda: 1)
    plain, calls = image_files.read_open_image, iter(range(1000))

    def dies(opened: object, spec: InputSpec) -> np.ndarray:
        if next(calls) == 100:
            raise KeyboardInterrupt
        return plain(opened, spec)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(image_files, "read_open_image", dies)
        with pytest.raises(KeyboardInterrupt):
            load_dataset(GRAY, sources)
    read.clear()

    dataset = load_dataset(GRAY, sources)

    assert len(dataset.files) == 120
    assert 0 < len(read) <= 40  # two classes of 40 had been read
    assert not list(sources.cache.rglob("*.partial"))


def test_shard_that_a_crash_has_damaged_is_read_again(sources: Sources) -> None:
    expected = load_dataset(GRAY, sources).fingerprint()
    for number, file in enumerate(sorted(sources.cache.rglob("*.npz"))):
        file.write_bytes(b"" if number == 0 else file.read_bytes()[: 50 * number])

    assert load_dataset(GRAY, sources).fingerprint() == expected


def listed(count: int) -> list[ListedFile]:
    return [ListedFile(f"cat/IMG_{number:05d}.jpg", 1, 1) for number in range(count)]


def test_shards_are_all_files_in_order_and_of_bounded_size() -> None:
    shards = list(cut(listed(10_000)))

    assert [file for shard in shards for file in shard] == listed(10_000)
    assert max(map(len, shards)) <= MOST_FILES
    assert 20 <= len(shards) <= 80


def test_file_that_comes_or_goes_changes_few_shards() -> None:
    files = listed(10_000)
    before = {tuple(shard) for shard in cut(files)}
    generator = random.Random(0)

    for _ in range(20):
        place = generator.randrange(len(files))
        more = [*files[:place], ListedFile(f"{files[place].name}-b.jpg", 1, 1), *files[place:]]
        fewer = files[:place] + files[place + 1 :]

        for other in (more, fewer):
            changed = {tuple(shard) for shard in cut(other)} - before
            assert sum(map(len, changed)) <= 6 * MOST_FILES
