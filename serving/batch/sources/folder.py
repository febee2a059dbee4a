"""All files of a folder and its subfolders that are not hidden, by the parts of their paths."""

# ruff: noqa: D102 - the base class says what its methods do

import os
import re
from collections.abc import Collection, Iterator
from functools import partial

from serving.batch.listing import not_hidden
from serving.batch.places import LocalPlace, Place, place_of, read_local
from serving.batch.source import Item, Shard, SourceError
from serving.batch.sources.packing import key_of, packed, unpacked
from serving.batch.sources.placed import PlacedSource
from serving.batch.sources.reading import read_ahead, read_item

ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


class Folder(PlacedSource):
    """Files below a folder; a file's key is its relative path. Links to folders are not followed."""

    kind = "folder"
    must = "hold at least one file"

    def _shards(self, images: int) -> Iterator[Shard]:
        place = place_of(self.place)
        check_folder(place)
        yield from packed(place.walk(not_hidden), images)

    def read(self, shard: Shard, max_bytes: int) -> Iterator[Item]:
        return read_below(place_of(self.place), unpacked(shard), max_bytes)

    def find(self, keys: Collection[str], max_bytes: int) -> Iterator[Item]:
        root = place_of(self.place)
        return read_below(root, existing(root, keys, hidden=False), max_bytes)


def check_folder(place: Place) -> None:
    """Refuse what is no folder."""
    info = place.info()
    if info is None or not info.is_folder:
        raise SourceError(f"{place} must be a folder of images, got {'nothing there' if info is None else 'a file'}")


def read_below(root: Place, files: Iterator[tuple[str, bytes]], max_bytes: int) -> Iterator[Item]:
    """The files of some keys and relative paths below a folder."""
    there = root.holds_something
    if not isinstance(root, LocalPlace):
        return read_ahead(lambda file: read_item(file[0], root.child(file[1].decode()).read, max_bytes, there), files)
    prefix = os.fsencode(root.path) + b"/"
    return (read_item(key, partial(read_local, prefix + path), max_bytes, there) for key, path in files)


def existing(root: Place, keys: Collection[str], *, hidden: bool) -> Iterator[tuple[str, bytes]]:
    """Keys and relative paths of those keys whose files are there."""
    for key in keys:
        if any(part in ("", ".", "..") or (part.startswith(".") and not hidden) for part in key.split("/")):
            continue
        written = ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), key.encode())
        for path in dict.fromkeys((key.encode(), written)):
            info = root.child(os.fsdecode(path)).info() if key_of(path) == key else None
            if info is not None and not info.is_folder:
                yield key, path
                break
