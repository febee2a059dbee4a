"""The user's own images: FOLDER/<class>/**/*.{png,jpg,jpeg,webp}, decoded as the server decodes them.

    dataset = load_folder(recipe.data, Sources(folder=Path("photos")))

Where FOLDER holds two folders `train` and `test` instead, each with the same class folders, the latter is the test
split. The images stay in their files (training/image_files.py); one pass over them makes an index (training/index.py).
What cannot be read is left out and named; hidden files and files of other types are left out and counted.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from serving.bundle import InputSpec
from training.data import DataError, Dataset, Sources
from training.index import BrokenFile, ListedFile, read_files
from training.progress import note, warn

if TYPE_CHECKING:
    from training.recipe import DataSpec

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
OTHER_IMAGES = (".avif", ".bmp", ".cr2", ".dng", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".nef", ".tif", ".tiff")
SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation"}
OWN_SPLITS = ("train", "test")  # folders that a data set with a test split of its own has
NAMED = 3  # files that a line names


@dataclass(frozen=True)
class Listing:
    """A folder of class folders.

    Attributes:
        folder: where it is.
        classes: the image files of each class, in order.
        test: likewise, of its own test split; empty if it has none.
        others: how many other files there are in them, by what they are.
        loose: how many image files lie beside the class folders.
    """

    folder: Path
    classes: dict[str, list[ListedFile]]
    test: dict[str, list[ListedFile]]
    others: Counter[str]
    loose: int

    @property
    def files(self) -> list[list[ListedFile]]:
        """Of each class, and of each class of the test split."""
        return [*self.classes.values(), *self.test.values()]

    def class_of(self, name: str) -> str:
        """The class of a file."""
        return name.split("/")[1 if self.test else 0]


def load_folder(spec: "DataSpec", sources: Sources) -> Dataset:
    """Read a folder of class folders, and say on the standard error what of it is left out.

    Raises:
        DataError: if none is named, or it is not laid out so, or a class has no image.
    """
    listing = list_folder(sources.folder)
    _tell_others(listing)
    shape = InputSpec(
        channels=spec.channels, height=spec.size, width=spec.size, resize=spec.resize, background=spec.background
    )
    folder, classes = listing.folder, tuple(listing.classes)
    images, broken = read_files(folder, listing.files, shape, sources.cache, sources.features)
    _tell_broken(listing, broken)
    places = {name: index for index, name in enumerate(classes)}
    labels = [places[listing.class_of(name)] for name in images.names]
    if lost := [name for name in classes if places[name] not in set(labels)]:
        reasons = [f"{one.name}: {one.why}" for one in broken if listing.class_of(one.name) in lost]
        raise DataError(
            f"every class folder of {folder} must hold images that can be read, got none in {lost} ({reasons[0]}): "
            "replace the files, or remove the folders"
        )
    test_start = sum(not name.startswith("test/") for name in images.names) if listing.test else None
    return Dataset(folder.resolve().name, images, torch.tensor(labels), classes, shape, test_start, files=images.names)


def list_folder(folder: Path | None) -> Listing:
    """Find the images of each class.

    Raises:
        DataError: if there is no folder, or it is not laid out so.
    """
    if folder is None:
        raise DataError("a folder of class folders must be named with --data FOLDER, got none")
    if not folder.is_dir():
        raise DataError(f"--data must be a folder of class folders, got {folder}, which is not a folder")
    parts = _parts(folder)
    others: Counter[str] = Counter()
    listed = [{name: _listed(folder, f"{part}{name}", others) for name in names} for part, (names, _) in parts.items()]
    listing = Listing(
        folder, listed[0], listed[1] if listed[1:] else {}, others, sum(loose for _, loose in parts.values())
    )
    if empty := [name for classes in listed for name, files in classes.items() if not files]:
        _tell_others(listing)
        raise DataError(
            f"every class folder of {folder} must hold {', '.join(IMAGE_SUFFIXES)} files, got none in {empty}: "
            "add images, or remove the folder"
        )
    return listing


def _parts(folder: Path) -> dict[str, tuple[list[str], int]]:
    """The class folders, and how many images lie beside them: of the folder itself, or of its train and its test."""
    names, loose = _class_folders(folder)
    if names != sorted(OWN_SPLITS):
        _require_classes(folder, names, loose)
        return {"": (names, loose)}
    parts = {f"{part}/": _class_folders(folder / part) for part in OWN_SPLITS}
    (first, _), (second, _) = parts.values()
    for part, (names, loose) in parts.items():
        _require_classes(folder / part, names, loose)
    if first != second:
        strange = ", ".join(sorted({*first} ^ {*second}))
        raise DataError(
            f"{folder}/train and {folder}/test must hold the same class folders, got {strange} in one alone"
        )
    return parts


def _class_folders(folder: Path) -> tuple[list[str], int]:
    """The folders in a folder, and how many images lie beside them."""
    visible = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    names = [name for name in visible if (folder / name).is_dir()]
    return names, sum(_is_image(name) for name in visible if name not in names)


def _require_classes(folder: Path, names: Sequence[str], loose: int) -> None:
    if not names and loose:
        raise DataError(
            f"{folder} must hold a folder of images for each class, got {loose:,} images and no folder: move the "
            f"images of each class into a folder of its own, such as {folder}/cat and {folder}/dog"
        )
    if len(names) < 2:
        raise DataError(
            f"{folder} must hold at least 2 class folders, got {names}: add a folder with images of another class"
        )
    if SPLIT_NAMES.issuperset(name.lower() for name in names):
        raise DataError(
            f"{folder} must hold a folder of images for each class, or train and test with one each, got "
            f"{', '.join(names)}: name one of them, such as --data {folder / names[-1]}"
        )


def _listed(folder: Path, name: str, others: Counter[str]) -> list[ListedFile]:
    """The image files of a class in order; what else there is, is counted in `others`."""
    found = []
    for entry in _files_below(str(folder / name)):
        if entry.name.startswith("."):
            others["hidden"] += 1
        elif not _is_image(entry.name):
            others[Path(entry.name).suffix.lower() or "without a suffix"] += 1
        else:
            about = entry.stat()
            found.append(ListedFile(Path(entry.path).relative_to(folder).as_posix(), about.st_size, about.st_mtime_ns))
    return sorted(found, key=lambda file: file.name.split("/"))


def _files_below(folder: str) -> Iterator["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from () if entry.name.startswith(".") else _files_below(entry.path)
            elif entry.is_file():
                yield entry


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _tell_others(listing: Listing) -> None:
    """Say which files are left out because of what they are."""
    folder, others = listing.folder, listing.others
    images = {kind: count for kind, count in others.items() if kind in OTHER_IMAGES}
    if images:
        warn(f"{folder}: left out, for only PNG, JPEG and WebP are read: {_counted(images)}; convert them to JPEG")
    if rest := {kind: count for kind, count in others.items() if kind not in images}:
        note(f"{folder}: left out, for they are no images: {_counted(rest)}")
    if listing.loose:
        count = _counted({"beside the class folders": listing.loose})
        warn(f"{folder}: left out, for they are of no class: {count}; move each into a class folder")


def _counted(kinds: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))


def _tell_broken(listing: Listing, broken: Sequence[BrokenFile]) -> None:
    """Say which files are left out because they cannot be read."""
    if not broken:
        return
    total = sum(map(len, listing.files))
    named = "; ".join(f"{one.name}: {one.why}" for one in broken[:NAMED])
    more = f"; and {len(broken) - NAMED:,} more" if len(broken) > NAMED else ""
    warn(f"{listing.folder}: {len(broken):,} of {total:,} files cannot be read and are left out: {named}{more}")
