"""Scoring offline: every image of a source → a row of a table, by the predictor that the server uses.

    summary = score(open_source("photos/"), "model_store/mnist-mda/1", "answers.parquet")

The images come in shards; each becomes one part of the table. The same call goes on after any death with the parts that
are there, and the table is then the one of an undisturbed run.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serving.batch.engine import Engine, EngineError, default_layout
from serving.batch.figures import Figures, total
from serving.batch.job import Job, Plan, begin, plan_of, shards_of
from serving.batch.local import LocalEngine
from serving.batch.options import Format, ScoreOptions
from serving.batch.output import Output
from serving.batch.parts import finished
from serving.batch.progress import Display, shown
from serving.batch.source import Source
from serving.batch.store import OutputError
from serving.batch.table import Table
from serving.bundle import Bundle
from serving.lock import locked

DEFAULT = ScoreOptions()


@dataclass(frozen=True)
class Summary:
    """What a table holds, and what this run did for it.

    Attributes:
        out: the table.
        labels: of the bundle.
        figures: of all rows.
        images: that this run scored.
        seconds: that it took.
    """

    out: str
    labels: tuple[str, ...]
    figures: Figures
    images: int
    seconds: float

    def __str__(self) -> str:
        before = self.figures.images - self.images
        done = f" ({before:,} were there already)" if before else ""
        rate = f"{self.images / self.seconds:,.0f} images/s"
        return f"{self.out}: {self.figures.images:,} images{done}, {self.figures.failed:,} without an answer, {rate}"

    def as_json(self) -> dict[str, Any]:
        """Everything there is to tell, as plain JSON values."""
        figures = self.figures
        answered = figures.images - figures.failed
        spent = sum(figures.seconds.values())
        shares = {stage: round(seconds / spent, 3) for stage, seconds in figures.seconds.items() if spent}
        counts = dict(zip(self.labels, figures.assigned, strict=True)) if figures.assigned else {}
        return {
            "event": "summary",
            "out": self.out,
            "images": figures.images,
            "errors": figures.failed,
            "error_codes": dict(sorted(figures.errors.items())),
            "scored": self.images,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images / self.seconds, 1),
            "classes": {label: sum(each) for label, each in counts.items()},
            "components": counts,
            "mean_log_density": _mean(figures.log_density, answered),
            "mean_typicality": _mean(figures.typicality, answered),
            "atypical_share": _mean(figures.atypical, answered),
            "stage_shares": shares,
            "slowest_stage": max(shares, key=shares.__getitem__, default=None),
            "batches": figures.batches,
            "full_batches": figures.full,
        }


def _mean(total: float | None, count: int) -> float | None:
    return None if total is None or not count else round(total / count, 6)


def score(
    source: Source,
    bundle: str | Path,
    out: str,
    options: ScoreOptions = DEFAULT,
    *,
    form: Format | None = None,
    engine: Engine | None = None,
    display: Display = "none",
    again: bool = False,
) -> Summary:
    """Score every image of a source, or go on with it.

    With the local engine the caller's main module must be importable, as for every pool of processes.

    Args:
        source: the images (`sources.open_source`).
        bundle: folder of the bundle.
        out: the table: one file if it ends in .parquet or .jsonl, else a folder of parts; a path or a URL.
        options: what else decides the table, but for the format.
        form: the format of a folder of parts; None takes Parquet.
        engine: who scores; None takes a process a core.
        display: how progress is shown.
        again: whether to begin anew in the place of a table that is there.

    Raises:
        ServingError: if the source, the bundle, the device or the output cannot be used, or another job lies there.
            What is done is kept; the same call goes on.
    """
    began = time.monotonic()
    found, output = Bundle.load(bundle), Output.at(out, form)
    options = replace(options, format=output.format)
    _require_apart(source, output)
    Table(found, options)  # refuses what the bundle does not answer
    job = Job(source, str(Path(bundle).absolute()), options, output.parts)
    if again:
        output.clear()
    if (said := output.whole()) is not None:
        figures = output.require_same(said, job, found, plan_of(job))
        return Summary(out, found.manifest.labels, figures, 0, time.monotonic() - began)
    with _alone(job):
        plan = begin(job, found)
        figures, images = _score_parts(job, plan, engine or _local(options), display)
        output.finish(job, found, plan, figures)
    return Summary(out, found.manifest.labels, figures, images, time.monotonic() - began)


def _require_apart(source: Source, output: Output) -> None:
    """Refuse to write among the images, which would be others the next time."""
    place = source.description.get("place")
    where = output.parts.local_path
    if place and where is not None and Path(where).is_relative_to(place):
        raise OutputError(f"out must not lie among the images in {place}, got {output.parts}: choose another --out")


def _local(options: ScoreOptions) -> LocalEngine:
    return LocalEngine(default_layout(options.device, None, None, nice=False))


@contextmanager
def _alone(job: Job) -> Iterator[None]:
    """Keep others from the same job, where they can be kept: on this machine."""
    if (path := job.records.local_path) is None:
        yield
        return
    folder = Path(path)
    is_new = not folder.parent.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder, f"score into {job.store}"):
            yield
    finally:
        if is_new and not job.has_parts():  # it never came to be
            job.store.remove_all()


def _score_parts(job: Job, plan: Plan, engine: Engine, display: Display) -> tuple[Figures, int]:
    """Score the parts that are not there; the figures of all, and how many images that were."""
    done = {one.number: one.figures for one in finished(job)}
    before = total(done.values())
    missing = (one for one in shards_of(job) if one[0] not in done)
    if len(done) < plan.shards:
        with shown(display, plan.images, before.images, before.failed) as progress:
            for part in engine.run(job, missing, progress):
                done[part.number] = part.figures
    if len(done) < plan.shards:
        raise EngineError(f"all {plan.shards} parts must be done, got {len(done)}: the same command goes on")
    whole = total(figures for _, figures in sorted(done.items()))
    return whole, whole.images - before.images
