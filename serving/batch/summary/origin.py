"""What a table says of the job that made it: in the metadata of Parquet, or in the folder of a job's parts."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from serving.batch.summary.table import Table, TableError

RECORD = Path("_job") / "job.json"


class OptionsOfJob(BaseModel):
    """Those that say how figures are to be read."""

    precision: str = "float32"


class InputsOfJob(BaseModel):
    """How many shards the job has, each of which becomes a part."""

    shards: int | None = None


class Origin(BaseModel):
    """Who made a table of what.

    Attributes:
        source: where the images are; None if the table does not say, as a file of JSON Lines.
        options: how they were scored.
        inputs: how many parts there are to be.
    """

    source: dict[str, Any] | None = None
    options: OptionsOfJob = Field(default_factory=OptionsOfJob)
    inputs: InputsOfJob = Field(default_factory=InputsOfJob)

    def missing_parts(self, table: Table) -> int:
        """How many parts of a folder are yet to be written."""
        there = len(table.files) if table.path.is_dir() else None
        return 0 if there is None or self.inputs.shards is None else max(0, self.inputs.shards - there)


def origin_of(table: Table) -> Origin:
    """Read what a table says; what it does not say is left out.

    Raises:
        TableError: if what it says cannot be read.
    """
    record = table.path / RECORD
    place = record if record.is_file() else table.files[0]
    try:
        return Origin.model_validate_json(_said(place, table.kind))
    except ValidationError as exc:
        first = exc.errors()[0]
        found = f"{'.'.join(map(str, first['loc'])) or 'job'}: {first['msg']}"
        raise TableError(f"{place} must say what job made the table, got {found}: score it again") from exc
    except (pa.ArrowException, OSError) as exc:
        raise TableError(f"{place} must be readable, got {exc}: score it again") from exc


def _said(place: Path, kind: str) -> bytes:
    if place.name == RECORD.name:
        return place.read_bytes()
    if kind == "jsonl":
        return b"{}"
    metadata: dict[bytes, bytes] = pq.read_schema(place).metadata or {}
    return metadata.get(b"job", b"{}")
