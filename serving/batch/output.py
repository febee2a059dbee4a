"""What a job leaves: one file, whose parts lie beside it until it is whole, or a folder of parts.

output = Output.at("answers.parquet")
"""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Self

import pyarrow.parquet as pq

from serving.batch.figures import Figures
from serving.batch.job import JOB, JOB_FOLDER, Job, Plan, require_empty, require_same
from serving.batch.options import SUFFIXES, Format
from serving.batch.parts import FIGURES, schema_of
from serving.batch.places import place_of
from serving.batch.store import OutputError, Store
from serving.bundle import Bundle

BESIDE = ".parts"  # behind the name of the one file


@dataclass(frozen=True)
class Output:
    """Where a table is written.

    Attributes:
        parts: the folder of its parts.
        format: of them.
        folder: of the one file that is asked for, if one is.
        name: of that file.
    """

    parts: Store
    format: Format
    folder: Store | None = None
    name: str = ""

    @classmethod
    def at(cls, out: str, chosen: Format | None) -> Self:
        """One file if `out` ends in .parquet or .jsonl, else a folder.

        Args:
            out: a path or a URL.
            chosen: the format; None takes that of the suffix, or Parquet.

        Raises:
            OutputError: if both are given and differ.
        """
        place = place_of(out)
        by_name = SUFFIXES.get(PurePosixPath(place.name).suffix)
        if by_name is None:
            return cls(Store(place), chosen or "parquet")
        if chosen not in (None, by_name):
            raise OutputError(f"out must end in .{chosen}, as the format is {chosen}, got {out}")
        above = place.parent
        return cls(Store(above.child(f"{place.name}{BESIDE}")), by_name, Store(above), place.name)

    def whole(self) -> bytes | None:
        """What the one file says of itself, if it is there; nothing for a folder of parts."""
        if self.folder is None or not self.folder.place.child(self.name).exists():
            return None
        if self.format == "jsonl":
            return b""
        with self.folder.reading(self.name) as stream:
            said: bytes = (pq.read_schema(stream).metadata or {}).get(b"job", b"")
            return said

    def require_same(self, said: bytes, job: Job, bundle: Bundle, plan: Plan) -> Figures:
        """The figures of a file that is there already, if it is the job's.

        Raises:
            OutputError: if it is another's, or does not say whose.
        """
        if not said:
            raise OutputError(f"out must not be there yet, got {self.folder}/{self.name}: begin anew with --again")
        there = json.loads(said)
        figures = FIGURES.validate_python(there.pop("figures", {}))
        require_same(there, job.identity(bundle) | {"inputs": asdict(plan)}, f"{self.folder}/{self.name}")
        return figures

    def clear(self) -> None:
        """Take away the table and what there is of it.

        Raises:
            OutputError: if the folder is no job's.
        """
        if self.parts.inside(JOB_FOLDER).read(JOB) is None:
            require_empty(self.parts)
        self.parts.remove_all()
        if self.folder is not None:
            self.folder.place.child(self.name).delete()

    def finish(self, job: Job, bundle: Bundle, plan: Plan, figures: Figures) -> None:
        """Put all parts into the one file, if one is asked for, and take them away."""
        if self.folder is None:
            return
        told = {name: value for name, value in asdict(figures).items() if name != "seconds"}  # which no two runs share
        said = job.identity(bundle) | {"inputs": asdict(plan), "figures": told}
        self.folder.write(self.name, partial(_join, job, bundle, said, plan.shards))
        self.parts.remove_all()


def _join(job: Job, bundle: Bundle, said: dict[str, Any], parts: int, out: BinaryIO) -> None:
    """Write all parts of a job, one after the other."""
    with _appending(job, bundle, said, out) as append:
        for number in range(parts):
            append(job.store.read(job.part_name(number)) or b"")


@contextmanager
def _appending(job: Job, bundle: Bundle, said: dict[str, Any], stream: BinaryIO) -> Iterator[Callable[[bytes], object]]:
    """What appends a part to a file."""
    if job.options.format == "jsonl":
        yield lambda content: stream.write(content)
        return
    schema = schema_of(job, bundle, said)
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        yield lambda content: writer.write_table(pq.read_table(io.BytesIO(content)).cast(schema))
