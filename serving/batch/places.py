"""Where files are: a local path, or a URL.

    place = place_of("photos")                        # or "s3://bucket/photos", "gs://...", "hdfs://...", "memory://..."
    for entry in place.walk(not_hidden): ...
    place.child("table.parquet").write(lambda out: pq.write_table(table, out))

A place is its address and nothing else, so it travels to other processes. Local files go through plain calls of the
operating system, several times as fast as pyarrow's; see `remote.py` for the others.
"""

# ruff: noqa: D102 - the base class says what its methods do

import errno
import io
import os
import re
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote
from uuid import uuid4

from serving.batch.listing import Entry, Takes, not_hidden, walk_folders, walk_local
from serving.errors import ImageTooLarge, ServingError

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://|[A-Za-z][A-Za-z0-9+.-]+::")
READ_BYTES = 1024 * 1024  # at once, from a file that is read from its start to its end


class PlaceError(ServingError):
    """An address that nothing here can read: a misspelt one, or one that needs a package which is missing."""

    code = "bad_place"


class Info(NamedTuple):
    """What is known of a file or folder without reading it; None is what its file system does not tell."""

    size: int | None
    mtime_ns: int | None
    is_folder: bool


class Place(ABC):
    """A file or a folder, whether it is there or not. All methods raise OSError where the file system does."""

    @property
    @abstractmethod
    def text(self) -> str:
        """Its address: an absolute path, or the URL."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of its path."""

    @property
    @abstractmethod
    def parent(self) -> "Place":
        """The folder that it is in."""

    @abstractmethod
    def child(self, relative: str) -> "Place":
        """What is in it under a relative path with "/"."""

    @abstractmethod
    def info(self) -> Info | None:
        """Its size, its time and whether it is a folder; None if nothing is there."""

    @abstractmethod
    def read(self, max_bytes: int | None = None) -> bytes:
        """The whole file.

        Raises:
            ImageTooLarge: if the file has more than `max_bytes`; it is not read then.
        """

    @abstractmethod
    def open(self) -> BinaryIO:
        """The file, open for reading and seeking, buffered."""

    @abstractmethod
    def walk(self, takes: Takes) -> Iterator[Entry]:
        """All files below the folder that are taken, sorted by the parts of their paths; see `listing.py`."""

    @abstractmethod
    def write(self, write: Callable[[BinaryIO], object]) -> None:
        """Put what `write` writes here; whoever looks sees the old file or the whole new one."""

    @abstractmethod
    def delete(self) -> None:
        """Take the file away; nothing happens if it is not there."""

    @abstractmethod
    def delete_folder(self) -> None:
        """Take the folder away with all that is in it; nothing happens if it is not there."""

    def exists(self) -> bool:
        """Whether something is there."""
        return self.info() is not None

    def names(self) -> Iterator[str]:
        """Names of files that are not hidden, anywhere below the folder, in any order."""
        return (os.fsdecode(entry.name) for entry in self.walk(not_hidden))

    def holds_something(self) -> bool:
        """Whether a folder is there and has anything in it: one whose disk was taken away is empty."""
        return self.exists()

    def __str__(self) -> str:
        return self.text


def place_of(text: str | Path) -> Place:
    """The place at an address; a relative path is one from the working directory.

    Raises:
        PlaceError: if the URL is of no known kind, names credentials, or needs a package that is missing.
    """
    match = URL.match(str(text))
    if match is None:
        return LocalPlace(os.path.abspath(text))  # noqa: PTH100 - Path.absolute keeps ".."
    if match[1] == "file":
        return LocalPlace(os.path.abspath(unquote(str(text).removeprefix("file://"))))  # noqa: PTH100
    from serving.batch.remote import remote_place

    return remote_place(str(text))


@dataclass(frozen=True)
class LocalPlace(Place):
    """A file or folder of this machine, by its absolute path."""

    path: str

    @property
    def text(self) -> str:
        return self.path

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def parent(self) -> Place:
        return LocalPlace(str(Path(self.path).parent))

    def child(self, relative: str) -> Place:
        return LocalPlace(f"{self.path}/{relative}")

    def info(self) -> Info | None:
        try:
            status = Path(self.path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Info(status.st_size, status.st_mtime_ns, stat.S_ISDIR(status.st_mode))

    def read(self, max_bytes: int | None = None) -> bytes:
        return read_local(self.path, max_bytes)

    def open(self) -> BinaryIO:
        return io.BufferedReader(io.FileIO(self.path), READ_BYTES)

    def walk(self, takes: Takes) -> Iterator[Entry]:
        root = os.fsencode(self.path)
        return walk_folders(lambda folder: walk_local(root, folder, takes))

    def names(self) -> Iterator[str]:
        folders = [self.path]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        folders += [entry.path] if (is_folder := entry.is_dir(follow_symlinks=False)) else []
                        yield from [] if is_folder else [entry.name]

    def holds_something(self) -> bool:
        with suppress(FileNotFoundError), os.scandir(self.path) as entries:
            return next(entries, None) is not None
        return False

    def write(self, write: Callable[[BinaryIO], object]) -> None:
        path = Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(partial_name(path.name))
        try:
            with partial.open("wb") as out:
                write(out)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def delete(self) -> None:
        with suppress(FileNotFoundError):
            Path(self.path).unlink()

    def delete_folder(self) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self.path)


def partial_name(name: str) -> str:
    """A hidden name for a file that becomes `name`; nobody else has it."""
    return f".{name}.{uuid4().hex[:12]}"


def place_from(folder: Place, text: str) -> Place:
    """The place at an address that stands in a file: a relative path is one from that file's folder."""
    return place_of(text) if text.startswith("/") or URL.match(text) else folder.child(text)


def read_local(path: str | bytes, max_bytes: int | None = None) -> bytes:
    """`Place.read` of a local file, in the four calls that it takes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer must not keep anybody waiting
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "Is a folder, a pipe or a device", path)
        check_size(status.st_size, max_bytes)
        data = os.read(descriptor, status.st_size)
        while len(data) < status.st_size and (more := os.read(descriptor, status.st_size - len(data))):
            data += more  # one call gives 2 GiB at most
        return data
    finally:
        os.close(descriptor)


def check_size(size: int, max_bytes: int | None) -> None:
    """Refuse a file that is too large to be read, in the words of `decode.py`."""
    if max_bytes is not None and size > max_bytes:
        raise ImageTooLarge(f"image must have at most {max_bytes} bytes, got {size}")
