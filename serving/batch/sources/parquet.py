"""Images in Parquet: a column of encoded bytes, of paths, or Hugging Face's `struct<bytes, path>`; see `columns.py`.

A shard is a range of a file's rows. Only the columns that are needed are read, and of a group of rows only up to the
shard's end; rows of the group before the shard are decoded and dropped, so groups that are much larger than shards cost
time. Paths are relative to the folder of their Parquet file, or URLs.
"""

# ruff: noqa: D102 - the base class says what its methods do

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from serving.batch.listing import Entry
from serving.batch.places import URL, LocalPlace, Place, check_size, place_from
from serving.batch.source import SHARD_BYTES, Item, Shard, SourceError, UnreadableFile
from serving.batch.sources.columns import check_key_column, image_column, is_struct, is_text
from serving.batch.sources.inputs import file_of, input_place, inputs
from serving.batch.sources.packing import bytes_of, key_of, state_of
from serving.batch.sources.parquet_rows import RowCursor, open_parquet, parquet_errors, row_bytes
from serving.batch.sources.placed import PlacedSource
from serving.batch.sources.reading import as_many, read_ahead, read_item, source_errors

SUFFIXES = (".parquet", ".pq")

_LAST: dict[tuple["Parquet", Place, str, bool], RowCursor] = {}  # one at most: where this process has stopped


class _Row(NamedTuple):
    key: str
    data: bytes | None
    path: str | None


@dataclass(frozen=True)
class Parquet(PlacedSource):
    """Rows of a Parquet file, of those in a folder, or of those of a pattern.

    An image's key is the value of `key_column`; else its path, if the column holds paths or the struct has one; else
    `FILE#ROW`, where rows count from 0.

    Attributes:
        column: the column of images.
        key_column: the column of keys, or None.
    """

    kind = "parquet"
    must = "hold at least one row"

    column: str
    key_column: str | None = None

    @property
    def description(self) -> dict[str, Any]:
        return super().description | {"column": self.column, "key_column": self.key_column}

    def _shards(self, images: int) -> Iterator[Shard]:
        root, entries = inputs(self.place, SUFFIXES)
        for entry in entries:
            file = file_of(entry)
            place = input_place(root, file)
            with parquet_errors(place), open_parquet(place) as parquet:
                self._check(parquet.schema_arrow, place)
                rows = parquet.metadata.num_rows
                step = min(images, max(1, SHARD_BYTES // row_bytes(parquet, self.column)))
            state = state_of([entry])
            for first in range(0, rows, step):
                count = min(step, rows - first)
                yield Shard({"file": file, "first": first, "rows": count}, state, count)

    def read(self, shard: Shard, max_bytes: int) -> Iterator[Item]:
        root, _ = inputs(self.place, SUFFIXES)
        place = input_place(root, shard.where["file"])
        return as_many(self._items(place, shard, max_bytes), shard.images, str(place))

    def _items(self, place: Place, shard: Shard, max_bytes: int) -> Iterator[Item]:
        item = partial(_item, place, max_bytes)
        for rows in self._rows(place, shard, only_keys=False):
            is_remote = [row.data is None and row.path is not None and _is_remote(place, row.path) for row in rows]
            yield from read_ahead(item, rows) if any(is_remote) else map(item, rows)

    def find(self, keys: Collection[str], max_bytes: int) -> Iterator[Item]:
        """As `Source.find`, without the images of other rows."""
        root, _ = inputs(self.place, SUFFIXES)
        wanted = set(keys)
        for shard in self.shards(65_536):
            place = input_place(root, shard.where["file"])
            rows = (row for batch in self._rows(place, shard, only_keys=True) for row in batch)
            for number, row in enumerate(rows, shard.where["first"]):
                if row.key in wanted:
                    wanted.remove(row.key)
                    yield from self.read(Shard(shard.where | {"first": number, "rows": 1}, shard.state, 1), max_bytes)
            if not wanted:
                return

    def _rows(self, place: Place, shard: Shard, *, only_keys: bool) -> Iterator[list[_Row]]:
        """A shard's rows, some at a time."""
        name, first = key_of(bytes_of(shard.where["file"])), shard.where["first"]
        with parquet_errors(place):
            cursor = self._cursor(place, shard.state, only_keys)
            for start, batch in cursor.read(first, first + shard.where["rows"]):
                data, paths = _images(batch, self.column)
                keys = batch.column(self.key_column).to_pylist() if self.key_column else paths
                numbered = (f"{name}#{number}" for number in range(start, start + len(batch)))
                keyed = (number if key in (None, "") else str(key) for key, number in zip(keys, numbered, strict=True))
                yield [_Row(*row) for row in zip(keyed, data, paths, strict=True)]
            self._keep(cursor, place, shard.state, only_keys)

    def _cursor(self, place: Place, state: str, only_keys: bool) -> RowCursor:
        """The one that this process used last, if it can go on, or a new one."""
        try:
            return _LAST.pop((self, place, state, only_keys))
        except KeyError:
            parquet = open_parquet(place)
            self._check(parquet.schema_arrow, place)
            keys = self._columns_of_keys(parquet.schema_arrow)
            columns = keys if only_keys else list(dict.fromkeys([self.column, *keys]))
            return RowCursor(parquet, columns, self.column)

    def _keep(self, cursor: RowCursor, place: Place, state: str, only_keys: bool) -> None:
        _LAST.clear()
        _LAST[self, place, state, only_keys] = cursor

    def _check(self, schema: pa.Schema, place: Place) -> None:
        image_column(schema, self.column, str(place))
        if self.key_column:
            check_key_column(schema, self.key_column, str(place))

    def _columns_of_keys(self, schema: pa.Schema) -> list[str]:
        if self.key_column:
            return [self.key_column]
        kind = schema.field(self.column).type
        if is_struct(kind):
            return [f"{self.column}.path"] if kind.get_field_index("path") >= 0 else []
        return [self.column] if is_text(kind) else []


def found_parquet(place: str, column: str | None, key_column: str | None) -> Parquet:
    """The source, with its column found in its first file.

    Raises:
        SourceError: if there is no file, or not one column that can be meant.
    """
    with source_errors(place):
        root, entries = inputs(place, SUFFIXES)
        entry: Entry | None = next(entries, None)
        if entry is None:
            raise SourceError(f"{place} must hold at least one Parquet file, got none")
        first = input_place(root, file_of(entry))
    with parquet_errors(first), open_parquet(first) as parquet:
        schema = parquet.schema_arrow
    if key_column:
        check_key_column(schema, key_column, str(first))
    return Parquet(place, image_column(schema, column, str(first)), key_column)


def _images(batch: pa.RecordBatch, column: str) -> tuple[list[bytes | None], list[str | None]]:
    """Bytes and paths of a batch; None for what it has not."""
    nothing: list[Any] = [None] * len(batch)
    if column not in batch.schema.names:
        return nothing, nothing
    values = batch.column(column)
    if is_text(values.type):
        return nothing, values.to_pylist()
    if not pa.types.is_struct(values.type):
        return values.to_pylist(), nothing
    fields = dict(zip([field.name for field in values.type], values.flatten(), strict=True))
    return tuple(fields[name].to_pylist() if name in fields else nothing for name in ("bytes", "path"))  # type: ignore[return-value]


def _is_remote(parquet: Place, path: str) -> bool:
    return URL.match(path) is not None or not (isinstance(parquet, LocalPlace) or path.startswith("/"))


def _item(parquet: Place, max_bytes: int, row: _Row) -> Item:
    if row.data is not None:
        data = row.data
        return read_item(row.key, lambda allowed: _checked(data, allowed), max_bytes, parquet.exists)
    if not row.path:
        return Item(row.key, UnreadableFile("row must hold an image's bytes or its path, got null"))
    return read_item(row.key, place_from(parquet.parent, row.path).read, max_bytes, parquet.exists)


def _checked(data: bytes, max_bytes: int) -> bytes:
    check_size(len(data), max_bytes)
    return data
