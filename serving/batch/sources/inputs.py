"""The files of a source whose files hold many images each: one file, those of a folder, or those of a pattern."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from serving.batch.listing import Entry, not_hidden
from serving.batch.places import Place, place_of
from serving.batch.source import SourceError
from serving.batch.sources.folder import check_folder
from serving.batch.sources.packing import bytes_of, text_of
from serving.batch.sources.patterns import is_pattern, matching, split

COMPRESSED = (".gz", ".tgz")


def inputs(address: str, suffixes: tuple[str, ...]) -> tuple[Place, Iterator[Entry]]:
    """The folder that an address is about, and its files, in sorted order.

    Args:
        address: of a file, a folder or a pattern.
        suffixes: which files of a folder, hidden ones and those that begin with "_" aside.

    Raises:
        SourceError: if nothing is there.
    """
    place = place_of(address)
    info = place.info()
    if info is None and is_pattern(address):
        root, pattern = split(address)
        check_folder(root)
        return root, matching(root, pattern)
    if info is None:
        raise SourceError(f"{address} must be a file or a folder, got nothing there")
    if not info.is_folder:
        return place.parent, iter([Entry(b"", place.name.encode(errors="surrogateescape"), info.size, info.mtime_ns)])
    ends = tuple(suffix.encode() for suffix in suffixes)

    def takes(folder: bytes, name: bytes, is_folder: bool) -> bool:
        visible = not_hidden(folder, name, is_folder) and not name.startswith(b"_")
        return visible and (is_folder or name.lower().endswith(ends))

    return place, place.walk(takes)


def input_place(root: Place, file: str) -> Place:
    """One of the files, by what `file_of` made of its path."""
    return root.child(bytes_of(file).decode(errors="surrogateescape"))


def file_of(entry: Entry) -> str:
    """A file's relative path as JSON can hold it."""
    return text_of(entry.path)


def is_compressed(place: Place) -> bool:
    """Whether a file is compressed by gzip, by its name."""
    return place.name.lower().endswith(COMPRESSED)


@contextmanager
def opened(place: Place) -> Iterator[BinaryIO]:
    """A file's content, open for reading; seeking in a compressed one reads all before."""
    with place.open() as file:
        if not is_compressed(place):
            yield file
            return
        with gzip.open(file) as content:
            yield cast(BinaryIO, content)
