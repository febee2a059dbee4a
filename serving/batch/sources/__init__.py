"""Kinds of sources, a module each. Another kind is a module and a row of `KINDS`.

source = open_source("photos/")                                     # a folder
source = open_source("s3://bucket/train-{000..099}.tar")            # tars
source = open_source("images.parquet", column="image")              # a column of a table
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from serving.batch.places import Place, place_of
from serving.batch.source import Source, SourceError
from serving.batch.sources import array, parquet, tar
from serving.batch.sources.array import Array
from serving.batch.sources.folder import Folder
from serving.batch.sources.glob import Glob
from serving.batch.sources.parquet import found_parquet
from serving.batch.sources.paths import Paths
from serving.batch.sources.patterns import is_pattern
from serving.batch.sources.reading import source_errors
from serving.batch.sources.tar import Tar

LIST_SUFFIXES = (".txt", ".lst", ".list")
PEEKED = 1000  # files of a folder that tell what it holds
IMAGE_SUFFIXES = tuple(suffix.decode() for suffix in tar.IMAGES)


@dataclass(frozen=True)
class Kind:
    """One kind of source.

    Attributes:
        what: it reads, for messages.
        suffixes: of the files by which it is recognised.
        opened: makes the source of a place, a column and a column of keys.
    """

    what: str
    suffixes: tuple[str, ...]
    opened: Callable[[str, str | None, str | None], Source]


KINDS = {
    "folder": Kind("all files of a folder", (), lambda place, *_: Folder(place)),
    "glob": Kind("the files that a pattern matches", (), lambda place, *_: Glob(place)),
    "paths": Kind("the files that a text names", LIST_SUFFIXES, lambda place, *_: Paths(place)),
    "parquet": Kind("a column of Parquet files", parquet.SUFFIXES, found_parquet),
    "tar": Kind("the images in tar files", tar.SUFFIXES, lambda place, *_: Tar(place)),
    "array": Kind("pixels in .npy or IDX files", array.SUFFIXES, lambda place, *_: Array(place)),
}
MANY_A_FILE = ("parquet", "tar", "array")


def open_source(
    text: str, *, kind: str | None = None, column: str | None = None, key_column: str | None = None
) -> Source:
    """The source at an address.

    Args:
        text: a path, a pattern or a URL; a relative path is one from the working directory.
        kind: one of `KINDS`; None recognises it by what is there, by its name, or by its wildcards.
        column: the column of images in Parquet files; None takes the only one that can be it.
        key_column: the column of keys in Parquet files.

    Raises:
        SourceError: if nothing is there, if its kind cannot be told, or if it has not the columns.
        PlaceError: if the address cannot be read.
    """
    if kind is not None and kind not in KINDS:
        raise SourceError(f"source must be {', '.join(KINDS)}, got {kind!r}")
    place = place_of(text)
    if not place.text.isprintable():  # it becomes part of a table, and bytes that are not UTF-8 cannot
        raise SourceError(f"{place.text!a} must be an address of printable text in UTF-8, got others: rename it")
    kind = kind or _recognised(place)
    if kind != "parquet" and (column or key_column):
        raise SourceError(f"{text} must be Parquet files to have columns, got the kind {kind}: leave out --column")
    if kind == "glob" and not is_pattern(place.text):
        raise SourceError(f"{text} must have a wildcard such as * to be a pattern, got none")
    return KINDS[kind].opened(place.text, column, key_column)


def source_of(description: dict[str, Any]) -> Source:
    """The source that has this description."""
    return open_source(
        description["place"],
        kind=description["kind"],
        column=description.get("column"),
        key_column=description.get("key_column"),
    )


def _recognised(place: Place) -> str:
    with source_errors(str(place)):
        info = place.info()
        if info is None:
            if not is_pattern(place.text):
                raise SourceError(f"{place} must be a folder of images, got nothing there")
            return _by_name(place.name, MANY_A_FILE) or "glob"
        if info.is_folder:
            return _by_content(place)
    found = _by_name(place.name, tuple(KINDS))
    if found is None:
        kinds = ", ".join(f"{name} ({kind.what})" for name, kind in KINDS.items())
        raise SourceError(
            f"{place} must be a folder of images, got a file whose name tells no kind of source: name it with "
            f"--source, one of {kinds}"
        )
    return found


def _by_name(name: str, kinds: tuple[str, ...]) -> str | None:
    return next((kind for kind in kinds if name.lower().endswith(KINDS[kind].suffixes or ("\0",))), None)


def _by_content(place: Place) -> str:
    """The kind of a folder, by the names of its first files: images before all, unless there is something else too."""
    names = [name.lower() for name in islice(place.names(), PEEKED)]
    found = {kind for name in names if (kind := _by_name(name, MANY_A_FILE))}
    if not found:
        return "folder"
    if len(found) > 1 or any(name.endswith(IMAGE_SUFFIXES) for name in names):
        several = ", ".join(sorted(found | ({"folder"} if len(found) == 1 else set())))
        raise SourceError(
            f"{place} must hold files of one kind, got some that belong to {several}: choose one with --source"
        )
    return found.pop()
