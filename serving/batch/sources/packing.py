"""Files ↔ shards: files in sorted order become shards that hold their names, a folder's path once for all in it."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Protocol, TypeVar

from serving.batch.listing import Entry, joined
from serving.batch.source import SHARD_BYTES, Shard

ESCAPE = "\0"  # begins a name that is not UTF-8, with a character for each of its bytes; no file's name has it


class Sized(Protocol):
    """What may have a known size in bytes."""

    @property
    def size(self) -> int | None: ...  # noqa: D102


Held = TypeVar("Held", bound=Sized)


def grouped(files: Iterable[Held], images: int) -> Iterator[list[Held]]:
    """Groups of at most `images` files and, but for a single larger file, `SHARD_BYTES`."""
    held: list[Held] = []
    total = 0
    for file in files:
        size = file.size or 0
        if held and (len(held) == images or total + size > SHARD_BYTES):
            yield held
            held, total = [], 0
        held.append(file)
        total += size
    if held:
        yield held


def packed(entries: Iterable[Entry], images: int) -> Iterator[Shard]:
    """Shards of files."""
    for group in grouped(entries, images):
        folders = [
            [text_of(folder), [text_of(entry.name) for entry in inside]]
            for folder, inside in groupby(group, key=lambda entry: entry.folder)
        ]
        yield Shard({"files": folders}, state_of(group), len(group))


def state_of(entries: Iterable[Entry]) -> str:
    """What shows that files are others now: their names, sizes and times."""
    return digest(b"%b %a %a" % (entry.path, entry.size, entry.mtime_ns) for entry in entries)


def digest(lines: Iterable[bytes]) -> str:
    """SHA-256 over lines that have no NUL in them, half of it: it need not withstand anybody."""
    return hashlib.sha256(b"\0".join(lines)).hexdigest()[:32]


def unpacked(shard: Shard) -> Iterator[tuple[str, bytes]]:
    """Keys and relative paths of a shard's files."""
    for folder, names in shard.where["files"]:
        prefix = joined(bytes_of(folder), b"")
        for name in names:
            path = prefix + bytes_of(name)
            yield key_of(path), path


def text_of(name: bytes) -> str:
    """A name as JSON can hold it; `bytes_of` gives it back."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return ESCAPE + name.decode("latin-1")


def bytes_of(text: str) -> bytes:
    """The name that `text_of` was given."""
    return text[1:].encode("latin-1") if text.startswith(ESCAPE) else text.encode()


def key_of(path: bytes) -> str:
    r"""A path as people read it: bytes that are not UTF-8 become `\xNN`."""
    return path.decode(errors="backslashreplace")
