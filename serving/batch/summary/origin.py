"""What a table says of the job that made it: in the metadata of Parquet, or in the folder of a job's parts."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from serving.batch.job import JOB, JOB_FOLDER
from serving.batch.places import Place
from serving.batch.summary.table import Table, TableError


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
        return max(0, (self.inputs.shards or 0) - len(table.files)) if table.is_folder else 0


def origin_of(table: Table) -> Origin:
    """Read what a table says; what it does not say is left out.

    Raises:
        TableError: if what it says cannot be read.
    """
    place = table.place.child(JOB_FOLDER).child(JOB)
    try:
        if not (table.is_folder and place.exists()):
            place = table.files[0]
        return Origin.model_validate_json(_said(place, table.kind))
    except ValidationError as exc:
        first = exc.errors()[0]
        found = f"{'.'.join(map(str, first['loc'])) or 'job'}: {first['msg']}"
        raise TableError(f"{place} must say what job made the table, got {found}: score it again") from exc
    except (pa.ArrowException, OSError) as exc:
        raise TableError(f"{place} must be readable, got {exc}: score it again") from exc


def _said(place: Place, kind: str) -> bytes:
    if place.name == JOB:
        return place.read()
    if kind == "jsonl":
        return b"{}"
    with place.open() as stream:
        metadata: dict[bytes, bytes] = pq.read_schema(stream).metadata or {}
    return metadata.get(b"job", b"{}")
