"""Reading a tar from any of its headers on: POSIX (ustar and pax) and GNU, one member after the other.

Python's own `tarfile` takes 20 µs and more a member, which is as long as a small image takes to be decoded. What it
does besides, links, sparse files and permissions, is of no use here.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from gzip import BadGzipFile
from typing import BinaryIO

from serving.batch.source import SourceError

BLOCK = 512  # bytes; headers are one, contents are filled up to whole ones
END = bytes(BLOCK)
FILES, LONG_NAME, LONG_LINK, PAX, PAX_FOR_ALL, SPARSE = (b"0", b"\0", b"7"), b"L", b"K", b"x", b"g", b"S"
WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders and pipes
MAX_EXTRA_BYTES = 1024 * 1024  # of a long name or of pax records


class _BrokenTar(Exception):
    """What is wrong with it."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a tar.

    Attributes:
        offset: where its first header begins.
        name: as in the tar.
        start: where its content begins.
        size: of its content, in bytes.
        is_file: whether it is a plain file.
    """

    offset: int
    name: bytes
    start: int
    size: int
    is_file: bool


def members(
    file: BinaryIO, what: str, wanted: Callable[[Member], bool], *, offset: int = 0, tar_bytes: int | None = None
) -> Iterator[tuple[Member, bytes]]:
    """Members from `offset` on, and the contents of those that are wanted; no bytes for the others.

    Args:
        file: the tar, open for reading and seeking forward, decompressed.
        what: its name, for errors.
        wanted: whether to read a member's content.
        offset: of a member's first header.
        tar_bytes: size of the tar, if it is known.

    Raises:
        SourceError: if the tar is broken or breaks off; it names the last member that is whole.
    """
    last = None
    try:
        while True:
            file.seek(offset)
            member = _member(file, offset)
            if member is None:
                return
            if tar_bytes is not None and member.start + member.size > tar_bytes:
                raise _BrokenTar("it breaks off")
            yield member, _exactly(file, member.size) if wanted(member) else b""
            offset, last = member.start + _filled(member.size), member.name
    except (_BrokenTar, EOFError, zlib.error, BadGzipFile, ValueError) as exc:
        where = "before its first member" if last is None else f"after {last.decode(errors='backslashreplace')}"
        raise SourceError(f"{what} must be a whole tar, got a broken one, {where}: {exc}") from exc


def _member(file: BinaryIO, offset: int) -> Member | None:
    """The member whose headers begin here; None at the tar's end."""
    name, size, start = None, None, offset
    while True:
        header = _exactly(file, BLOCK)
        start += BLOCK
        if header == END:
            return None
        _check(header)
        kind, length = header[156:157], _number(header[124:136])
        if kind not in (LONG_NAME, LONG_LINK, PAX, PAX_FOR_ALL):
            break
        extra = _extra(file, length)
        start += _filled(length)
        if kind == LONG_NAME:
            name = extra.rstrip(b"\0")
        elif kind == PAX:
            records = _pax(extra)
            name, size = records.get(b"path", name), int(records[b"size"]) if b"size" in records else None
    if kind == SPARSE:
        raise _BrokenTar("it holds a sparse file")
    content = 0 if kind in WITHOUT_CONTENT else length if size is None else size
    return Member(offset, name or _name(header), start, content, kind in FILES)


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise _BrokenTar("it breaks off")
    return data


def _extra(file: BinaryIO, length: int) -> bytes:
    if length > MAX_EXTRA_BYTES:
        raise _BrokenTar(f"a name takes {length} bytes")
    return _exactly(file, _filled(length))[:length]


def _filled(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _check(header: bytes) -> None:
    if header[257:262] == b"ustar":
        return
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")  # of the time before POSIX
    if total != _number(header[148:156]):
        raise _BrokenTar("a header is none")


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise _BrokenTar("a header has no number where one must be") from None


def _name(header: bytes) -> bytes:
    name = header[:100].rstrip(b"\0").partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax(extra: bytes) -> dict[bytes, bytes]:
    """Records "LENGTH KEY=VALUE" and a line's end, where the length is that of all of it."""
    records = {}
    while extra:
        length, _, rest = extra.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(extra):
            raise _BrokenTar("a pax header is broken")
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        records[key] = value
        extra = extra[int(length) :]
    return records
