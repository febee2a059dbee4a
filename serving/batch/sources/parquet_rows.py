"""Rows of a Parquet file by their numbers.

A group of rows can only be decoded from its start. So whoever reads ranges of one group, one after the other, does best
with one cursor for all of them.
"""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serving.batch.places import LocalPlace, Place
from serving.batch.source import SourceError
from serving.batch.sources.reading import source_errors

BATCH_ROWS, BATCH_BYTES = 256, 16 * 1024 * 1024  # of rows that are in memory at once
BUFFER_BYTES = 1024 * 1024


def open_parquet(place: Place) -> pq.ParquetFile:
    """A file, with its columns read in pieces rather than a group at once."""
    return pq.ParquetFile(place.path if isinstance(place, LocalPlace) else place.open(), buffer_size=BUFFER_BYTES)


@contextmanager
def parquet_errors(place: Place) -> Iterator[None]:
    """Whatever pyarrow raises means that the file is broken."""
    try:
        with source_errors(str(place)):
            yield
    except pa.ArrowException as exc:
        raise SourceError(f"{place} must be a whole Parquet file, got a broken one: {exc}") from exc


def row_bytes(parquet: pq.ParquetFile, column: str) -> int:
    """Bytes of a column a row, on average and before compression."""
    groups = [parquet.metadata.row_group(index) for index in range(parquet.num_row_groups)]
    parts = range(groups[0].num_columns) if groups else ()
    mine = [index for index in parts if groups[0].column(index).path_in_schema.split(".")[0] == column]
    total = sum(group.column(index).total_uncompressed_size for group in groups for index in mine)
    return int(max(1, total // max(1, parquet.metadata.num_rows)))


class RowCursor:
    """Reads ranges of rows; one that begins behind the last and in its group goes on from there.

    Args:
        parquet: the file.
        columns: to be read.
        of_size: the column that takes most of the memory.
    """

    def __init__(self, parquet: pq.ParquetFile, columns: list[str], of_size: str) -> None:
        counts = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
        self._starts = list(accumulate(counts, initial=0))
        self._parquet, self._columns = parquet, columns
        self._rows = max(1, min(BATCH_ROWS, BATCH_BYTES // row_bytes(parquet, of_size)))
        self._batches: Iterator[tuple[int, Any]] = iter(())
        self._held: tuple[int, Any] | None = None  # the last batch, and the number of its first row

    def read(self, first: int, end: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Rows `first` to `end`, some at a time, and the number of the first of these."""
        if not self._goes_on_to(first):
            self._batches = self._from_group(self._group_of(first))
            self._held = next(self._batches, None)
        while self._held is not None:
            start, batch = self._held
            begin, stop = max(first, start), min(end, start + len(batch))
            if begin < stop:
                yield begin, batch.slice(begin - start, stop - begin)
            if start + len(batch) >= end:
                return
            self._held = next(self._batches, None)

    def _group_of(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def _goes_on_to(self, first: int) -> bool:
        if self._held is None or self._held[0] > first:
            return False
        return self._group_of(self._held[0]) == self._group_of(first)

    def _from_group(self, group: int) -> Iterator[tuple[int, Any]]:
        start = self._starts[group]
        groups = list(range(group, self._parquet.num_row_groups))
        for batch in self._parquet.iter_batches(self._rows, groups, columns=self._columns, use_threads=False):
            yield start, batch
            start += len(batch)
