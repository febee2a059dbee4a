"""What a job leaves: one file, whose parts lie beside it until it is whole, or a folder of parts.

output = Output.at("answers.parquet")
"""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, Self

import pyarrow.parquet as pq

from serving.batch.figures import Figures
from serving.batch.job import JOB, Job, Plan, require_same
from serving.batch.options import Format
from serving.batch.parts import FIGURES, schema_of
from serving.batch.store import OutputError, Store, store_of
from serving.bundle import Bundle

SUFFIXES: dict[str, Format] = {".parquet": "parquet", ".jsonl": "jsonl"}
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
        place, _, query = out.partition("?")
        by_name = SUFFIXES.get(PurePosixPath(place).suffix)
        if by_name is None:
            return cls(store_of(out), chosen or "parquet")
        if chosen not in (None, by_name):
            raise OutputError(f"out must end in .{chosen}, as the format is {chosen}, got {out}")
        whole = store_of(place)
        above, _, name = whole.url.rpartition("/")
        suffix = f"?{query}" if query else ""
        return cls(Store(f"{whole.url}{BESIDE}{suffix}"), by_name, Store(f"{above or '/'}{suffix}"), name)

    def whole(self) -> bytes | None:
        """What the one file says of itself, if it is there; nothing for a folder of parts."""
        if self.folder is None or not self.folder.has(self.name):
            return None
        if self.format == "jsonl":
            return b""
        with self.folder.seeking(self.name) as stream:
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
        if self.parts.names() and self.parts.inside("_job").read(JOB) is None:
            raise OutputError(f"out must be a new or empty folder or a job's, got {self.parts}, which is none")
        self.parts.remove_all()
        if self.folder is not None:
            self.folder.remove(self.name)

    def finish(self, job: Job, bundle: Bundle, plan: Plan, figures: Figures) -> None:
        """Put all parts into the one file, if one is asked for, and take them away."""
        if self.folder is None:
            return
        told = {name: value for name, value in asdict(figures).items() if name != "seconds"}  # which no two runs share
        said = job.identity(bundle) | {"inputs": asdict(plan), "figures": told}
        with self.folder.writing(self.name) as stream, _appending(job, bundle, said, stream) as append:
            for number in range(plan.shards):
                append(job.store.read(job.part_name(number)) or b"")
        self.parts.remove_all()


@contextmanager
def _appending(job: Job, bundle: Bundle, said: dict[str, Any], stream: Any) -> Iterator[Callable[[bytes], None]]:
    """What appends a part to a file."""
    if job.options.format == "jsonl":
        yield stream.write
        return
    schema = schema_of(job, bundle, said)
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        yield lambda content: writer.write_table(pq.read_table(io.BytesIO(content)).cast(schema))
