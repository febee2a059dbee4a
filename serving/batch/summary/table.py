"""A table that `score` wrote, read some rows at a time: a Parquet file, JSON Lines, or a folder of such parts.

    table = open_table("answers.parquet")
    for batch in table.batches(): ...                 pyarrow record batches of the columns in SCHEMA, in order

However long the table, at most a batch of it is in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from serving.errors import ServingError

ROWS = 65_536  # of a batch
BLOCK_BYTES = 4 * 1024 * 1024  # of JSON Lines that make a batch; no line may be longer
KINDS = {".parquet": "parquet", ".jsonl": "jsonl"}
TOP_PROBABILITY = pa.list_(pa.struct([pa.field("probability", pa.float32())]))
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.string()),
        ("probability", pa.float32()),
        ("component", pa.int32()),
        ("log_density", pa.float32()),
        ("top_k", TOP_PROBABILITY),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("model", pa.string()),
        ("version", pa.int32()),
        ("bundle_digest", pa.string()),
    ]
)
OPTIONAL = ("top_k",)


class TableError(ServingError):
    """A table is missing, empty or broken, or not what `score` writes."""

    code = "bad_table"


@dataclass(frozen=True)
class Table:
    """A table on disk.

    Attributes:
        path: the file, or the folder of parts.
        files: its parts, in order.
        kind: how they are written.
    """

    path: Path
    files: tuple[Path, ...]
    kind: Literal["parquet", "jsonl"]

    def batches(self) -> Iterator[Any]:
        """Record batches of at most `ROWS` rows, or of `BLOCK_BYTES` of JSON Lines, with the columns of SCHEMA.

        Raises:
            TableError: if a part cannot be read or lacks a column.
        """
        read = _parquet_batches if self.kind == "parquet" else _json_batches
        for file in self.files:
            try:
                yield from read(file)
            except (pa.ArrowException, OSError) as exc:
                raise TableError(f"{file} must be a whole part of a table, got {exc}: score it again") from exc


def open_table(path: Path) -> Table:
    """Find the parts of a table.

    Raises:
        TableError: if there are none, or some of either kind.
    """
    files = sorted(_parts(path)) if path.is_dir() else [path]
    kinds = {KINDS[file.suffix] for file in files if file.suffix in KINDS}
    rule = f"{path} must be a .parquet or .jsonl file or a folder of such parts"
    if not path.exists():
        raise TableError(f"{rule}, got nothing there: name what `score --out` has written")
    if len(kinds) != 1:
        found = "both kinds" if kinds else "none of them" if path.is_dir() else f"a file {path.name}"
        raise TableError(f"{rule}, got {found}: name what `score --out` has written")
    return Table(path, tuple(files), "parquet" if kinds == {"parquet"} else "jsonl")


def _parts(folder: Path) -> Iterator[Path]:
    for file in folder.iterdir():
        if file.suffix in KINDS and file.is_file() and not file.name.startswith(("_", ".")):
            yield file


def _parquet_batches(file: Path) -> Iterator[Any]:
    with pq.ParquetFile(file) as parquet:
        there = parquet.schema_arrow.names
        missing = [name for name in SCHEMA.names if name not in there and name not in OPTIONAL]
        if missing:
            raise TableError(f"{file} must have the columns of a table of scores, got none named {', '.join(missing)}")
        leaves = [parquet.schema.column(number).path for number in range(len(parquet.schema))]
        top = [leaf for leaf in leaves if leaf.startswith("top_k.") and leaf.endswith(".probability")]
        columns = [name for name in SCHEMA.names if name not in OPTIONAL] + top
        for batch in parquet.iter_batches(ROWS, columns=columns):
            yield _with_schema(batch)


def _json_batches(file: Path) -> Iterator[Any]:
    from pyarrow import json as arrow_json

    if file.stat().st_size == 0:  # which the reader refuses
        return
    with arrow_json.open_json(
        file,
        arrow_json.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
        arrow_json.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="ignore"),
    ) as reader:
        for batch in reader:
            yield _with_schema(batch)


def _with_schema(batch: Any) -> Any:
    """The batch with exactly the columns of SCHEMA, in this order; what it lacks is null."""
    columns = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(len(batch), field.type)
        for field in SCHEMA
    ]
    return pa.record_batch(columns, schema=SCHEMA)
