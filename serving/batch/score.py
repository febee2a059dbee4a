"""Scoring a folder: every file in it → one row of a Parquet file, by the predictor that the server uses.

    summary = score_folder("photos", "model_store/mnist-mda/1", "answers.parquet")

Every file that is not hidden gets a row, in sorted order; one that is no readable image gets its error there. Rows are
`path` (relative to the folder), `label`, `probability`, `component`, `component_probability`, `log_density`,
`probabilities` (in the order of the bundle's labels), `error_code` and `error_message`; what does not apply is null.
"""

import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from serving.bundle import Bundle, Precision
from serving.errors import ImageError, ImageTooLarge, ServingError
from serving.intake import Decoded
from serving.predictor import Predictor
from serving.respond import Answer, Options
from serving.runtimes import RuntimeName

ROWS_PER_GROUP = 4096
OPTIONS = Options(top_k=1, returns=frozenset({"probabilities"}))
SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("probability", pa.float64()),
        pa.field("component", pa.int32()),
        pa.field("component_probability", pa.float64()),
        pa.field("log_density", pa.float64()),
        pa.field("probabilities", pa.list_(pa.float64())),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
    ]
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """What was scored: images, how many of them got an error, and the seconds from first to last."""

    images: int
    errors: int
    seconds: float

    def __str__(self) -> str:
        rate = self.images / self.seconds if self.seconds else 0.0
        return f"{self.images:,} images, {self.errors:,} without an answer, {rate:,.0f} images/s"


def score_folder(
    folder: str | Path,
    bundle: str | Path,
    out: str | Path,
    *,
    runtime: RuntimeName = "onnx",
    device: str = "cpu",
    batch_size: int = 64,
    decode_workers: int | None = None,
    precision: Precision = "float32",
    progress: bool = True,
) -> Summary:
    """Score every file in a folder and its subfolders.

    Args:
        folder: the images.
        bundle: folder of the bundle.
        out: Parquet file to write; it appears when it is whole. Its schema metadata names the bundle.
        runtime: `onnx` or `torchscript`.
        device: `cpu`, `cuda` or `cuda:N`.
        batch_size: images in one call of the graph.
        decode_workers: threads that read and decode; None takes one per core.
        precision: `float16` and `int8` run the bundle's variants of these names.
        progress: whether to draw a progress bar on stderr.

    Raises:
        ServingError: if the folder is missing or empty, or the bundle or device cannot be used.
    """
    root, target = Path(folder), Path(out)
    files = _files(root, target)
    predictor = Predictor(Bundle.load(bundle), runtime, device, max_batch=batch_size, precision=precision)
    predictor.warm_up()
    started, errors = time.monotonic(), 0
    with _writer(target, predictor.bundle) as writer, _bar(progress) as bar:
        task = bar.add_task("scoring", total=len(files))
        rows: list[Row] = []
        for batch in _batches(_decode_ahead(predictor, files, batch_size, decode_workers), batch_size):
            rows += _answer(predictor, root, batch)
            errors += sum(isinstance(decoded, ServingError) for _, decoded in batch)
            bar.advance(task, len(batch))
            if len(rows) >= ROWS_PER_GROUP:
                _write(writer, rows)
        _write(writer, rows)
    return Summary(len(files), errors, time.monotonic() - started)


def _files(root: Path, target: Path) -> list[Path]:
    if not root.is_dir():
        raise ServingError(f"{root} must be a folder of images, got {'a file' if root.exists() else 'nothing there'}")
    out = target.resolve()
    hidden = (
        file for file in root.rglob("*") if not any(part.startswith(".") for part in file.relative_to(root).parts)
    )
    files = sorted(file for file in hidden if file.is_file() and file.resolve() != out)
    if not files:
        raise ServingError(f"{root} must hold at least one file, got none")
    return files


def _decode_ahead(
    predictor: Predictor, files: Iterable[Path], batch_size: int, workers: int | None
) -> Iterator[tuple[Path, Decoded]]:
    """Decode in threads, in order, at most three batches ahead of the reader."""
    waiting: deque[tuple[Path, Future[Decoded]]] = deque()
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for file in files:
            waiting.append((file, pool.submit(_decode, predictor, file)))
            if len(waiting) > 3 * batch_size:
                path, future = waiting.popleft()
                yield path, future.result()
        while waiting:
            path, future = waiting.popleft()
            yield path, future.result()


def _decode(predictor: Predictor, file: Path) -> Decoded:
    try:
        size, allowed = file.stat().st_size, predictor.limits.max_bytes
        if size > allowed:  # do not even read it
            return ImageTooLarge(f"image must have at most {allowed} bytes, got {size}")
        return predictor.decode(file.read_bytes())
    except ServingError as error:
        return error
    except OSError as exc:
        return ImageError(f"{file} must be readable, got {exc}")


def _batches(items: Iterator[tuple[Path, Decoded]], size: int) -> Iterator[list[tuple[Path, Decoded]]]:
    while batch := list(islice(items, size)):
        yield batch


def _answer(predictor: Predictor, root: Path, batch: Sequence[tuple[Path, Decoded]]) -> list[Row]:
    images = [decoded for _, decoded in batch if not isinstance(decoded, ServingError)]
    answers = iter(predictor.encode(predictor.infer(np.stack(images)), [OPTIONS] * len(images)) if images else [])
    rows = []
    for file, decoded in batch:
        path = os.fsencode(file.relative_to(root).as_posix()).decode(errors="replace")
        rows.append(_error_row(path, decoded) if isinstance(decoded, ServingError) else _row(path, next(answers)))
    return rows


def _row(path: str, answer: Answer) -> Row:
    names = ("label", "probability", "component", "component_probability", "log_density")
    values = {name: answer.get(name) for name in names}
    return {"path": path, **values, "probabilities": list(answer["probabilities"].values())}


def _error_row(path: str, error: ServingError) -> Row:
    return {"path": path, "error_code": error.code, "error_message": str(error)}


@contextmanager
def _writer(target: Path, bundle: Bundle) -> Iterator[pq.ParquetWriter]:
    """Write to a partial file beside `target`, which takes its place if the block succeeds and vanishes if not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    manifest = bundle.manifest
    metadata = {"bundle": manifest.name, "version": str(manifest.version), "labels": json.dumps(manifest.labels)}
    try:
        with pq.ParquetWriter(partial, SCHEMA.with_metadata(metadata)) as writer:
            yield writer
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _write(writer: pq.ParquetWriter, rows: list[Row]) -> None:
    if rows:
        writer.write_table(pa.Table.from_pylist(rows, schema=writer.schema))
        rows.clear()


def _bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not shown)
