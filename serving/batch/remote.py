"""Places that a URL names: object stores and Hadoop through pyarrow, whatever else fsspec knows through fsspec.

    s3://bucket/photos?region=eu-central-1            also endpoint_override=HOST:PORT and scheme=http
    gs://bucket/photos    hdfs://host:port/photos     abfs://..., sftp://..., memory://... by fsspec

Credentials come from the environment or from the provider's own files, never from the URL, for that is written down.
"""

# ruff: noqa: D102 - the base class says what its methods do

import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

from serving.batch.listing import FOLDER, Entry, Takes, joined, walk_folders
from serving.batch.places import Info, Place, PlaceError, check_size, partial_name

BY_PYARROW = frozenset({"s3", "gs", "gcs", "hdfs", "viewfs"})
WITH_BUCKET = frozenset({"s3", "gs", "gcs"})  # where the path begins with what stands in a host's place
WHOLE_UPLOADS = frozenset({"s3", "gcs"})  # types of file systems where a file appears when it has been sent whole
BUFFER_BYTES = 4 * 1024 * 1024  # are asked for at once: a request takes tens of milliseconds whatever its size
IN_MEMORY_BYTES = 64 * 1024 * 1024  # of a file to be sent; the rest waits on the disk


def remote_place(url: str) -> "RemotePlace":
    """The place at a URL; what it needs is opened, so that what is missing shows at once."""
    head, mark, query = url.partition("?")
    scheme, _, path = head.partition("://")
    place = RemotePlace(f"{scheme}://{path.rstrip('/')}{mark}{query}")
    _ = place.opened
    return place


@dataclass(frozen=True)
class RemotePlace(Place):
    """A file or folder by URL.

    Attributes:
        url: of this file, or of a folder above it.
        below: path from there, not escaped.
    """

    url: str
    below: str = ""

    @property
    def opened(self) -> tuple[Any, str]:
        """The file system of pyarrow, and the path there."""
        system, root = _opened(self.url)
        return system, f"{root.rstrip('/')}/{self.below}" if self.below else root

    @property
    def text(self) -> str:
        head, mark, query = self.url.partition("?")
        return f"{head}/{self.below}{mark}{query}" if self.below else self.url

    @property
    def name(self) -> str:
        return self.opened[1].rpartition("/")[2]

    @property
    def parent(self) -> Place:
        if self.below:
            return RemotePlace(self.url, self.below.rpartition("/")[0])
        head, mark, query = self.url.partition("?")
        scheme, _, path = head.partition("://")
        return RemotePlace(f"{scheme}://{path.rpartition('/')[0]}{mark}{query}")

    def child(self, relative: str) -> Place:
        return RemotePlace(self.url, f"{self.below}/{relative}" if self.below else relative)

    def info(self) -> Info | None:
        system, path = self.opened
        info = system.get_file_info(path)
        return None if info.type.name == "NotFound" else Info(info.size, info.mtime_ns, info.type.name == "Directory")

    def read(self, max_bytes: int | None = None) -> bytes:
        system, path = self.opened
        with system.open_input_file(path) as file:
            check_size(file.size(), max_bytes)
            return cast(bytes, file.read())

    def open(self) -> BinaryIO:
        system, path = self.opened
        return io.BufferedReader(system.open_input_file(path), BUFFER_BYTES)

    def walk(self, takes: Takes) -> Iterator[Entry]:
        system, root = self.opened
        return walk_folders(lambda folder: _listed(system, root.rstrip("/"), folder, takes))

    def write(self, write: Callable[[BinaryIO], object]) -> None:
        system, path = self.opened
        with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as whole:  # closing a file half-way would send the half
            write(cast(BinaryIO, whole))
            whole.seek(0)
            with _moved_into_place(system, path) as target, system.open_output_stream(target) as out:
                while data := whole.read(BUFFER_BYTES):
                    out.write(data)

    def delete(self) -> None:
        system, path = self.opened
        if self.exists():
            system.delete_file(path)

    def delete_folder(self) -> None:
        system, path = self.opened
        if self.exists():
            system.delete_dir(path)


@contextmanager
def _moved_into_place(system: Any, path: str) -> Iterator[str]:
    """Where to write: beside the place, to be moved there; in an object store at the place itself."""
    if system.type_name in WHOLE_UPLOADS:
        yield path
        return
    folder, _, name = path.rpartition("/")
    if folder:
        system.create_dir(folder, recursive=True)
    partial = f"{folder}/{partial_name(name)}"
    yield partial
    system.move(partial, path)


def _listed(system: Any, root: str, folder: bytes, takes: Takes) -> Iterator[Entry | bytes]:
    from pyarrow.fs import FileSelector

    found = []
    for info in system.get_file_info(FileSelector(f"{root}/{folder.decode()}" if folder else root)):
        name, is_folder = info.base_name.encode(), info.type.name == "Directory"
        if name and takes(folder, name, is_folder):
            found.append((name + FOLDER if is_folder else name, info.size, info.mtime_ns))
    found.sort(key=lambda item: item[0])
    for name, size, mtime_ns in found:
        yield joined(folder, name[:-1]) if name.endswith(FOLDER) else Entry(folder, name, size, mtime_ns)


def _opened(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    user, mark, _ = url.partition("://")[2].partition("/")[0].rpartition("@")
    if mark and user != "anonymous":  # as Google's storage has it
        raise PlaceError(
            f"{scheme} URL must name no user or password, got one: it is written into tables; set the variables or "
            "files that the provider's own tools read"
        )
    if scheme not in BY_PYARROW:
        return _by_fsspec(url)
    head, _, query = url.partition("?")
    host, _, path = head.partition("://")[2].partition("/")
    system = _by_pyarrow(f"{scheme}://{host}/{'?' if query else ''}{query}")
    bucket = host.rpartition("@")[2]
    return system, f"{bucket}/{unquote(path)}".rstrip("/") if scheme in WITH_BUCKET else f"/{unquote(path)}"


@lru_cache(maxsize=64)
def _by_pyarrow(url: str) -> Any:
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    try:
        return FileSystem.from_uri(url)[0]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as exc:
        raise PlaceError(f"{url} must be an address that pyarrow can open, got {exc}") from exc


def _by_fsspec(url: str) -> tuple[Any, str]:
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    scheme = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]
    except ImportError as exc:
        raise PlaceError(f"{scheme}:// needs fsspec, which is missing: pip install 'discriminant[score]'") from exc
    try:
        system, path = url_to_fs(url)
    except ImportError as exc:
        raise PlaceError(f"{scheme}:// needs a package that is missing: {exc}") from exc
    except ValueError as exc:
        raise PlaceError(f"{url} must start like an address that pyarrow or fsspec knows, got {exc}") from exc
    return PyFileSystem(FSSpecHandler(system)), path
