"""Where a job's output lies: a folder on this machine, or one by URL (s3://, gs://, hdfs://).

A file appears whole or not at all: here it is written beside its place and renamed; an object of a store is there when
its upload is complete.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from pyarrow import fs

from serving.errors import ServingError


class OutputError(ServingError):
    """What was scored cannot be written, or what lies at its place is something else."""

    code = "output_error"


@dataclass(frozen=True)
class Store:
    """A folder for a job's files.

    Attributes:
        url: an absolute path or a URL, which may have a query.
        below: a folder in it.
    """

    url: str
    below: str = ""

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine's."""
        return "://" not in self.url

    def inside(self, name: str) -> "Store":
        """A folder in it."""
        return Store(self.url, f"{self.below}/{name}")

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None if it is not there."""
        system, folder = self._opened()
        try:
            with system.open_input_stream(f"{folder}/{name}") as stream:
                content: bytes = stream.read()
                return content
        except FileNotFoundError:
            return None

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        system, folder = self._opened()
        is_file: bool = system.get_file_info(f"{folder}/{name}").is_file
        return is_file

    @contextmanager
    def seeking(self, name: str) -> Iterator[Any]:
        """A file to read anywhere in it."""
        system, folder = self._opened()
        with system.open_input_file(f"{folder}/{name}") as file:
            yield file

    @contextmanager
    def reading(self, name: str) -> Iterator[Any]:
        """A file as a stream of bytes."""
        system, folder = self._opened()
        with system.open_input_stream(f"{folder}/{name}") as stream:
            yield stream

    def write(self, name: str, content: bytes) -> None:
        """Write a file.

        Raises:
            OutputError: if it cannot be written.
        """
        with self.writing(name) as stream:
            stream.write(content)

    @contextmanager
    def writing(self, name: str) -> Iterator[Any]:
        """A stream of bytes that becomes the file `name` when the block succeeds.

        Raises:
            OutputError: if it cannot be written.
        """
        system, folder = self._opened()
        beside = f"{folder}/.{name}.{uuid4().hex[:8]}" if self.is_local else f"{folder}/{name}"
        try:
            system.create_dir(folder)
            try:
                with system.open_output_stream(beside) as stream:
                    yield stream
                if self.is_local:
                    system.move(beside, f"{folder}/{name}")
            except BaseException:
                _drop(system, beside)
                raise
        except OSError as exc:
            raise OutputError(f"{self}/{name} must be writable, got {exc}") from exc

    def names(self) -> list[str]:
        """The files and folders in it; none if it is not there."""
        system, folder = self._opened()
        found = system.get_file_info(fs.FileSelector(folder, allow_not_found=True))
        return sorted(PurePosixPath(info.path).name for info in found)

    def remove(self, *names: str) -> None:
        """Delete files; those that are not there are passed over."""
        system, folder = self._opened()
        for name in names:
            _drop(system, f"{folder}/{name}")

    def remove_all(self) -> None:
        """Delete the folder and what is in it."""
        system, folder = self._opened()
        if system.get_file_info(folder).type is not fs.FileType.NotFound:
            system.delete_dir(folder)

    def _opened(self) -> tuple[Any, str]:
        if self.is_local:
            return fs.LocalFileSystem(), self.url + self.below
        try:
            system, folder = fs.FileSystem.from_uri(self.url)
        except (OSError, ValueError) as exc:
            raise OutputError(f"out must be a path or a URL that pyarrow writes to, got {self.url}: {exc}") from exc
        return system, folder + self.below

    def __str__(self) -> str:
        return self.url.partition("?")[0] + self.below


def store_of(place: str) -> Store:
    """A store by a path, which becomes absolute, or a URL."""
    return Store(place.rstrip("/") if "://" in place else str(Path(place).absolute()))


def _drop(system: Any, path: str) -> None:
    with suppress(FileNotFoundError):
        system.delete_file(path)
