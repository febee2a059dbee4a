"""The files that a text file names, one path or URL a line; blank lines are skipped.

Relative paths are from the text file's folder. The text is read as a stream, and a shard holds where its lines begin.
What shows a change is the lines themselves and, for files of this machine, their sizes and times; of URLs only the
lines, as a request for each would take longer than reading them.
"""

# ruff: noqa: D102 - the base class says what its methods do

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import islice
from typing import BinaryIO, NamedTuple

from serving.batch.places import URL, Info, LocalPlace, Place, place_from, place_of
from serving.batch.source import Item, Shard, SourceError
from serving.batch.sources.packing import digest, grouped, key_of
from serving.batch.sources.placed import PlacedSource
from serving.batch.sources.reading import as_many, read_ahead, read_item, source_errors
from serving.errors import shown

MAX_LINE_BYTES = 32 * 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class _Line(NamedTuple):
    offset: int
    path: bytes
    size: int | None
    mtime_ns: int | None


class Paths(PlacedSource):
    """Files by a list of them; a file's key is its line, so a line that is there twice gives two images of one key."""

    kind = "paths"
    must = "name at least one file"

    def _shards(self, images: int) -> Iterator[Shard]:
        return map(_shard, grouped(self._lines(), images))

    def read(self, shard: Shard, max_bytes: int) -> Iterator[Item]:
        with source_errors(self.place), place_of(self.place).open() as text:
            text.seek(shard.where["offset"])
            lines = [path for _, path in islice(_paths(text, self.place), shard.images)]
        return as_many(self._read(lines, max_bytes), shard.images, self.place)

    def find(self, keys: Collection[str], max_bytes: int) -> Iterator[Item]:
        with source_errors(self.place), place_of(self.place).open() as text:
            found = dict.fromkeys(path for _, path in _paths(text, self.place) if key_of(path) in keys)
        return self._read(list(found), max_bytes)

    def _read(self, lines: list[bytes], max_bytes: int) -> Iterator[Item]:
        text = place_of(self.place)
        folder = text.parent

        def item(line: bytes) -> Item:
            place = place_from(folder, os.fsdecode(line))
            return read_item(key_of(line), place.read, max_bytes, text.exists)

        is_local = isinstance(folder, LocalPlace) and not any(URL.match(os.fsdecode(line)) for line in lines)
        return map(item, lines) if is_local else read_ahead(item, lines)

    def _lines(self) -> Iterator[_Line]:
        text = place_of(self.place)
        folder = text.parent
        with text.open() as file:
            for offset, path in _paths(file, self.place):
                info = _info(folder, os.fsdecode(path))
                yield _Line(offset, path, info and info.size, info and info.mtime_ns)


def _info(folder: Place, path: str) -> Info | None:
    """What a file of this machine is like; None for others, and for what only reading it will tell."""
    if URL.match(path) and not path.startswith("file:"):
        return None
    place = place_from(folder, path)
    with suppress(OSError):
        return place.info() if isinstance(place, LocalPlace) else None
    return None


def _shard(lines: list[_Line]) -> Shard:
    state = digest(b"%b %a %a" % line[1:] for line in lines)
    return Shard({"offset": lines[0].offset}, state, len(lines))


def _paths(text: BinaryIO, what: str) -> Iterator[tuple[int, bytes]]:
    """Lines from here on that are not blank, and where each begins."""
    offset = text.tell()
    while line := text.readline(MAX_LINE_BYTES + 1):
        path = line.removeprefix(BYTE_ORDER_MARK) if offset == 0 else line
        path = path.rstrip(b"\r\n")
        if len(line) > MAX_LINE_BYTES or b"\0" in path:
            raise SourceError(f"{what} must be a text of one path a line, got at byte {offset}: {shown(path)}")
        if path.strip():
            yield offset, path
        offset += len(line)
