"""The rows of a table, copied once into a working file that can be asked again and again.

    rows = Rows.of(open_table("answers.parquet"))
    for batch in rows.scan(["label", "typicality"]): ...     all rows, some columns, a batch at a time
    rows.take([17, 3])                                       single rows

Whatever the table is, JSON Lines, a folder of parts or an address far away, the copy is one compact file here, and it
stays the same when the table changes. The file has no name, so nothing of it is left however the console ends. A batch
of rows at most is in memory.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.batch.summary.table import Table, TableError

GROUP_ROWS = 8192  # of the working file that are decoded to read one of them
BATCH_ROWS = 65_536  # of a scan that are in memory
MOST_DIFFERENT = 100_000  # labels and components that are remembered; a table of scores has far fewer
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.string()),
        ("probability", pa.float32()),
        ("component", pa.int32()),
        ("component_name", pa.string()),
        ("log_density", pa.float32()),
        ("typicality", pa.float64()),
        ("flags", pa.list_(pa.string())),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
    ]
)
WORDS = ("label", "component_name", "flags", "error_code")  # few different ones: read as numbers of them
STORED = pa.schema([column if column.name != "flags" else pa.field("flags", pa.string()) for column in SCHEMA])


@dataclass
class Known:
    """What is known of a table beforehand.

    Attributes:
        rows: how many.
        filled: columns in which some row has a value.
        labels: the different ones.
        names: what people call components, by label and component.
    """

    rows: int = 0
    filled: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)
    names: dict[tuple[str, int], str] = field(default_factory=dict)

    def add(self, batch: Any) -> None:
        """Take in a batch of rows."""
        self.rows += len(batch)
        self.filled |= {name for name in batch.schema.names if batch[name].null_count < len(batch)}
        if len(self.labels) < MOST_DIFFERENT:
            self.labels |= set(pc.unique(batch["label"].drop_null()).to_pylist())
        if "component_name" in self.filled and len(self.names) < MOST_DIFFERENT:
            named = pa.table({name: batch[name] for name in ("label", "component", "component_name")}).drop_null()
            for one in named.group_by(named.column_names).aggregate([]).to_pylist():
                self.names[one["label"], one["component"]] = one["component_name"]


class Rows:
    """The working file.

    Attributes:
        known: what there is in it.
    """

    def __init__(self, file: Any, known: Known) -> None:
        self.known = known
        self._lock = Lock()  # Arrow's reader is for one thread at a time
        self._parquet = pq.ParquetFile(file, read_dictionary=WORDS, pre_buffer=False)

    @classmethod
    def of(cls, table: Table, tell: Callable[[int], object] = lambda rows: None) -> "Rows":
        """Copy a table.

        Args:
            table: what `score` wrote.
            tell: is called with the number of rows so far.

        Raises:
            TableError: if it cannot be read, is none of scores, or there is no room for a copy.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="discriminant-table-") as folder:
                path = Path(folder) / "rows.parquet"
                known = _copy(table, path, tell)
                return cls(pa.memory_map(str(path)), known)  # which outlives the file's name
        except OSError as exc:
            raise TableError(
                f"the folder for temporary files must have room for a copy of {table.place.name}, got {exc}: "
                "name another one in TMPDIR"
            ) from exc

    def scan(self, columns: Sequence[str]) -> Iterator[Any]:
        """Record batches of some columns, of all rows in order."""
        groups = range(self._parquet.num_row_groups)
        step = BATCH_ROWS // GROUP_ROWS
        for first in range(0, len(groups), step):
            with self._lock:
                part = self._parquet.read_row_groups(groups[first : first + step], list(columns), use_threads=False)
            yield from part.combine_chunks().to_batches()

    def take(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Single rows by their numbers, counted from 0, in the order asked for; each has its number as `row`."""
        found: dict[int, dict[str, Any]] = {}
        wanted, first = sorted(set(numbers)), 0
        for group in range(self._parquet.num_row_groups):
            size = self._parquet.metadata.row_group(group).num_rows
            inside = [number for number in wanted if first <= number < first + size]
            if inside:
                with self._lock:
                    part = self._parquet.read_row_group(group, use_threads=False)
                rows = part.take(pa.array([number - first for number in inside])).to_pylist()
                found |= {number: {"row": number, **row} for number, row in zip(inside, rows, strict=True)}
            first += size
        return [found[number] for number in numbers]

    def counts_of(self, keys: Collection[str]) -> Counter[str]:
        """How many rows have each of some keys; those without a row are left out."""
        wanted, counts = pa.array(keys, pa.string()), Counter[str]()
        for batch in self.scan(["key"]):
            counts.update(batch["key"].filter(pc.is_in(batch["key"], value_set=wanted)).to_pylist())
        return counts


def _copy(table: Table, path: Path, tell: Callable[[int], object]) -> Known:
    known = Known()
    with pq.ParquetWriter(path, STORED, compression="zstd", use_dictionary=list(WORDS)) as writer:
        for batch in table.batches(SCHEMA):
            stored = _stored(batch)
            known.add(stored)
            writer.write_batch(stored, row_group_size=GROUP_ROWS)
            tell(known.rows)
    return known


def _stored(batch: Any) -> Any:
    """A batch with the flags of each row as one text."""
    columns = [pc.binary_join(batch["flags"], " ") if name == "flags" else batch[name] for name in STORED.names]
    return pa.record_batch(columns, schema=STORED)
