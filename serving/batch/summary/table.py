"""A table that `score` wrote, read some rows at a time: a Parquet file, JSON Lines, or a folder of such parts.

    table = open_table("answers.parquet")
    for batch in table.batches(): ...                 pyarrow record batches of the columns in SCHEMA, in order
    for batch in table.batches(schema): ...           of others

However long the table, at most a batch of it is in memory.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serving.batch.options import SUFFIXES, Format
from serving.batch.places import Place, place_of
from serving.errors import ServingError

ROWS = 65_536  # of a batch
BLOCK_BYTES = 4 * 1024 * 1024  # of JSON Lines that make a batch; no line may be longer
TOP_PROBABILITY = pa.list_(pa.struct([pa.field("probability", pa.float32())]))
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.string()),
        ("probability", pa.float32()),
        ("component", pa.int32()),
        ("log_density", pa.float32()),
        ("typicality", pa.float64()),
        ("top_k", TOP_PROBABILITY),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("model", pa.string()),
        ("version", pa.int32()),
        ("bundle_digest", pa.string()),
    ]
)
OPTIONAL = ("component_name", "typicality", "top_k", "flags")


class TableError(ServingError):
    """A table is missing, empty or broken, or not what `score` writes."""

    code = "bad_table"


@dataclass(frozen=True)
class Table:
    """A table here or by URL.

    Attributes:
        place: the file, or the folder of parts.
        is_folder: which of both.
        files: its parts, in order.
        kind: how they are written.
    """

    place: Place
    is_folder: bool
    files: tuple[Place, ...]
    kind: Format

    def batches(self, schema: pa.Schema = SCHEMA) -> Iterator[Any]:
        """Record batches of at most `ROWS` rows, or of `BLOCK_BYTES` of JSON Lines, with the columns of a schema.

        Raises:
            TableError: if a part cannot be read or lacks a column that is not in OPTIONAL.
        """
        read = _parquet_batches if self.kind == "parquet" else _json_batches
        for file in self.files:
            try:
                yield from read(file, schema)
            except (pa.ArrowException, OSError) as exc:
                raise TableError(f"{file} must be a whole part of a table, got {exc}: score it again") from exc


def open_table(address: str | Path) -> Table:
    """Find the parts of a table.

    Raises:
        TableError: if there are none, or some of either kind.
        PlaceError: if the address cannot be read.
    """
    place = place_of(address)
    try:
        info = place.info()
        is_folder = info is not None and info.is_folder
        files = tuple(_parts(place)) if is_folder else (place,)
    except OSError as exc:
        raise TableError(f"{place} must be readable, got {exc}") from exc
    kinds = {kind for file in files if (kind := SUFFIXES.get(_suffix(file.name)))}
    if info is not None and len(kinds) == 1:
        return Table(place, is_folder, files, kinds.pop())
    found = "nothing there" if info is None else "both kinds" if kinds else "none" if is_folder else "another file"
    raise TableError(
        f"{place} must be a .parquet or .jsonl file or a folder of such parts, got {found}: "
        "name what `score --out` has written"
    )


def _parts(folder: Place) -> Iterator[Place]:
    for entry in folder.walk(_is_part):
        yield folder.child(os.fsdecode(entry.path))


def _is_part(folder: bytes, name: bytes, is_folder: bool) -> bool:
    return not is_folder and not name.startswith((b"_", b".")) and _suffix(os.fsdecode(name)) in SUFFIXES


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix


def _parquet_batches(file: Place, schema: pa.Schema) -> Iterator[Any]:
    with file.open() as stream, pq.ParquetFile(stream) as parquet:
        there = parquet.schema_arrow.names
        missing = [name for name in schema.names if name not in there and name not in OPTIONAL]
        if missing:
            raise TableError(f"{file} must have the columns of a table of scores, got none named {', '.join(missing)}")
        columns = [name for name in schema.names if name in there and name != "top_k"]
        if "top_k" in schema.names:
            leaves = [parquet.schema.column(number).path for number in range(len(parquet.schema))]
            columns += [leaf for leaf in leaves if leaf.startswith("top_k.") and leaf.endswith(".probability")]
        for batch in parquet.iter_batches(ROWS, columns=columns):
            yield _with_schema(batch, schema)


def _json_batches(file: Place, schema: pa.Schema) -> Iterator[Any]:
    from pyarrow import json as arrow_json

    info = file.info()
    if info is not None and info.size == 0:  # which the reader refuses
        return
    read = arrow_json.ReadOptions(use_threads=False, block_size=BLOCK_BYTES)
    parse = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    with file.open() as stream, arrow_json.open_json(stream, read, parse) as reader:
        for batch in reader:
            yield _with_schema(batch, schema)


def _with_schema(batch: Any, schema: pa.Schema) -> Any:
    """The batch with exactly the columns of a schema, in this order; what it lacks is null."""
    columns = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(len(batch), field.type)
        for field in schema
    ]
    return pa.record_batch(columns, schema=schema)
