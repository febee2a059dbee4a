"""The index of a folder of images: what one pass over the files finds, kept in cache/index/ shard by shard.

    images, broken = read_files(folder, listed, spec, cache, features)

A shard is a stretch of a class folder's files in order. It ends after a file whose name's checksum says so, so that a
file that comes or goes changes the shard that it is in, and hardly any other. Of each file the index has the digest of
its pixels and its thumbnail, or why it cannot be read. The key of a shard is the SHA-256 of all that decides this:
where the files are, their names, sizes and times, and how they are decoded. So only new and changed files are read
again, and a pass that was broken off goes on where it was.

The same pass makes the features of a frozen backbone, if there is one, so that a file is decoded once.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zipfile import BadZipFile

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from serving.bundle import InputSpec
from training.duplicates import thumbnails
from training.files import replace_file
from training.image_files import Decoded, ImageFiles, decode_files, digests_of, images_at_once
from training.progress import Steps, steps

if TYPE_CHECKING:
    from training.features import FeatureCache

USUAL_FILES, MOST_FILES = 256, 512  # of a shard
FORMAT = 1  # of a shard's file, and of the rules that it was made by


class ListedFile(NamedTuple):
    """A file as its folder lists it."""

    name: str  # its path inside the folder
    size: int
    mtime_ns: int


class BrokenFile(NamedTuple):
    """A file that is no readable image."""

    name: str
    why: str


class Shard(NamedTuple):
    """What is known of a shard's files.

    Attributes:
        why: of each file why it cannot be read; empty if it can.
        digests: of those that can be read, uint8 (n, 16).
        thumbnails: likewise, float16 (n, channels * 64).
    """

    why: NDArray[np.str_]
    digests: NDArray[np.uint8]
    thumbnails: NDArray[np.float16]


def read_files(
    folder: Path, listed: Sequence[Sequence[ListedFile]], spec: InputSpec, cache: Path, features: "FeatureCache | None"
) -> tuple[ImageFiles, list[BrokenFile]]:
    """Read what the index does not know yet, and give all images and all that are none.

    Args:
        folder: where the files are.
        listed: the files of each class, in order.
        spec: how they are decoded.
        cache: where the index is kept.
        features: what else to make of those that are read; what it has of others stays as it is.
    """
    shards = [shard for files in listed for shard in cut(files)]
    kept = [cache / "index" / f"{_key(folder, shard, spec)}.npz" for shard in shards]
    known = [_load(file) for file in kept]
    unread = [number for number, shard in enumerate(known) if shard is None]
    total, count = sum(map(len, shards)), sum(len(shards[number]) for number in unread)
    decoded = decode_files((folder / file.name for number in unread for file in shards[number]), spec)
    with steps(f"reading {folder}", total, total - count, images=True) as bar:
        for number in unread:
            shard, lasts = _read(decoded, len(shards[number]), spec, features, bar)
            known[number] = shard
            if lasts:
                _save(shard, kept[number])
    return _images(folder, shards, [shard for shard in known if shard is not None], spec)


def _images(
    folder: Path, shards: Sequence[Sequence[ListedFile]], known: Sequence[Shard], spec: InputSpec
) -> tuple[ImageFiles, list[BrokenFile]]:
    whole = _concatenated(known)
    names = [file.name for shard in shards for file in shard]
    broken = [BrokenFile(name, str(why)) for name, why in zip(names, whole.why, strict=True) if why]
    readable = tuple(name for name, why in zip(names, whole.why, strict=True) if not why)
    sizes = tuple(len(shard.digests) for shard in known if len(shard.digests))
    return ImageFiles(folder, readable, spec, whole.digests, whole.thumbnails, sizes), broken


def cut(files: Sequence[ListedFile]) -> Iterator[Sequence[ListedFile]]:
    """The shards of a class folder's files."""
    start = 0
    for stop, file in enumerate(files, start=1):
        last = zlib.crc32(file.name.encode(errors="surrogateescape")) % USUAL_FILES == 0
        if last or stop - start == MOST_FILES or stop == len(files):
            yield files[start:stop]
            start = stop


def _key(folder: Path, shard: Sequence[ListedFile], spec: InputSpec) -> str:
    about = [FORMAT, PIL.__version__, str(folder.resolve()), spec.model_dump(), [tuple(file) for file in shard]]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _read(
    decoded: Iterator[Decoded], count: int, spec: InputSpec, features: "FeatureCache | None", bar: Steps
) -> tuple[Shard, bool]:
    """The next `count` decoded files as a shard, and whether it may be kept: not if the files could not be opened."""
    parts, made, opened = [], [], True
    while batch := list(islice(decoded, min(images_at_once(spec), count))):
        count -= len(batch)
        opened &= not any(isinstance(one, OSError) for one in batch)
        images = _stacked(batch, spec)
        why = np.array([str(one) if isinstance(one, Exception) else "" for one in batch])
        parts.append(Shard(why, digests_of(images), thumbnails(images).astype(np.float16)))
        if features is not None and len(images):
            made.append(features.extract(images))
        bar.advance(len(batch))
    whole = _concatenated(parts)
    if made and features is not None:
        features.save(whole.digests, spec, np.concatenate(made))
    return whole, opened


def _stacked(batch: Sequence[Decoded], spec: InputSpec) -> Tensor:
    images = [one for one in batch if not isinstance(one, Exception)]
    return torch.from_numpy(np.array(images, np.uint8).reshape(-1, spec.channels, spec.height, spec.width))


def _concatenated(parts: Sequence[Shard]) -> Shard:
    return Shard(*map(np.concatenate, zip(*parts, strict=True)))


def _load(file: Path) -> Shard | None:
    try:
        with file.open("rb") as stream, np.load(stream) as columns:
            return Shard(*(columns[name] for name in Shard._fields))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # not there, or broken off by a crash of the machine
        return None


def _save(shard: Shard, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, lambda out: np.savez(out, **shard._asdict()))
