"""Parts: what a worker makes of a shard, and whether it is there and whole.

    worker = PartWorker(job)
    done = worker.score(0, shard, tell)               # part-0000000.parquet and _job/done/0.json

Nothing else writes into a job's store, and two workers that write the same part write the same bytes.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from serving.batch.figures import Figures
from serving.batch.job import DONE, Job
from serving.batch.scorer import Scorer, Tell
from serving.batch.source import Shard
from serving.batch.table import Table
from serving.bundle import Bundle
from serving.predictor import Predictor


@dataclass(frozen=True)
class Done:
    """A part that was written.

    Attributes:
        number: which.
        sha256: of its file.
        figures: what there is to tell of its rows.
    """

    number: int
    sha256: str
    figures: Figures


_DONE = TypeAdapter(Done)
FIGURES = TypeAdapter(Figures)


class PartWorker:
    """Scores shards of a job, each into its part, with a predictor of its own.

    Args:
        job: what is scored.
        threads: of one inference on the CPU.
        decoders: threads that decode ahead of the graph; one decodes in its turn.
    """

    def __init__(self, job: Job, threads: int = 1, decoders: int = 1) -> None:
        options, bundle = job.options, Bundle.load(job.bundle)
        predictor = Predictor(
            bundle,
            options.runtime,
            options.device,
            threads,
            max_batch=options.batch_size,
            precision=options.precision,
        )
        predictor.warm_up()
        self._job = job
        self._max_bytes = predictor.limits.max_bytes
        self._schema = schema_of(job, bundle, job.identity(bundle))
        self._scorer = Scorer(predictor, Table(bundle, options), options.batch_size, decoders)

    def score(self, number: int, shard: Shard, tell: Tell) -> Done:
        """Write part `number`.

        Raises:
            SourceError: if the source breaks off.
            OutputError: if the part cannot be written.
        """
        items = self._job.source.read(shard, self._max_bytes)
        rows, figures = self._scorer.score(items, tell)
        content = FORMATS[self._job.options.format](rows.cast(self._schema))
        self._job.store.write(self._job.part_name(number), content)
        done = Done(number, hashlib.sha256(content).hexdigest(), figures)
        self._job.records.inside(DONE).write(f"{number}.json", _DONE.dump_json(done))
        return done


def finished(job: Job) -> Iterator[Done]:
    """The parts that are there and whole, by number."""
    records = job.records.inside(DONE)
    for number in sorted(int(name.removesuffix(".json")) for name in records.names()):
        done = _DONE.validate_json(records.read(f"{number}.json") or b"")
        content = job.store.read(job.part_name(number))
        if content is not None and hashlib.sha256(content).hexdigest() == done.sha256:
            yield done


def schema_of(job: Job, bundle: Bundle, said: dict[str, Any]) -> pa.Schema:
    """The table's columns; as metadata the bundle's name, version, digest and labels, and what is `said` of the job."""
    about = {
        "bundle": bundle.manifest.name,
        "version": str(bundle.manifest.version),
        "bundle_digest": bundle.digest,
        "labels": json.dumps(bundle.manifest.labels),
        "job": json.dumps(said),
    }
    return Table(bundle, job.options).schema.with_metadata(about)


def _as_parquet(rows: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(rows, out, compression="zstd")
    return out.getvalue()


def _as_jsonl(rows: pa.Table) -> bytes:
    numbers = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    return b"".join(orjson.dumps(_short(row), option=numbers) for row in rows.to_pylist())


def _short(value: Any) -> Any:
    """The same with float32 numbers, which are written with as many digits as they hold."""
    if isinstance(value, dict):
        return {name: _short(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_short(one) for one in value]
    return np.float32(value) if isinstance(value, float) else value


FORMATS: dict[str, Callable[[pa.Table], bytes]] = {"parquet": _as_parquet, "jsonl": _as_jsonl}
