"""Where a job's files lie: a folder, on this machine or by URL. A file in it appears whole or not at all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from serving.batch.places import LocalPlace, Place
from serving.errors import ServingError


class OutputError(ServingError):
    """What was scored cannot be written, or what lies at its place is something else."""

    code = "output_error"


@dataclass(frozen=True)
class Store:
    """A folder for a job's files, whether it is there or not."""

    place: Place

    def inside(self, name: str) -> "Store":
        """A folder in it."""
        return Store(self.place.child(name))

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None if it is not there."""
        try:
            return self.place.child(name).read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes | Callable[[BinaryIO], object]) -> None:
        """Write a file: its bytes, or what a function writes.

        Raises:
            OutputError: if it cannot be written.
        """
        file = self.place.child(name)
        try:
            file.write(content if callable(content) else lambda out: out.write(content))
        except OSError as exc:
            raise OutputError(f"{file} must be writable, got {exc}") from exc

    def names(self) -> list[str]:
        """Names of the files in it that are not hidden."""
        return list(self.place.names()) if self.place.exists() else []

    def foreign(self, own: str) -> str | None:
        """The path in it of something that is not in its folder `own`; None if there is nothing else."""
        if not self.place.exists():
            return None
        top = own.encode()
        entry = next(self.place.walk(lambda folder, name, is_folder: bool(folder) or name != top), None)
        return None if entry is None else os.fsdecode(entry.path)

    def remove_all(self) -> None:
        """Delete the folder and what is in it."""
        self.place.delete_folder()

    @property
    def local_path(self) -> str | None:
        """Its path, if it is on this machine."""
        return self.place.path if isinstance(self.place, LocalPlace) else None

    @contextmanager
    def reading(self, name: str) -> Iterator[BinaryIO]:
        """A file, to be read anywhere in it."""
        with self.place.child(name).open() as file:
            yield file

    def __str__(self) -> str:
        return self.place.text.partition("?")[0]
