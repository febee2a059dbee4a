"""The figures of a table: plain values, from one pass over it.

figures = figures_of(open_table("answers.parquet"), Bundle.load("model_store/mnist-mda/1"))
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.batch.summary.density import LOW, DensityTally, Histogram
from serving.batch.summary.occupancy import ClassOccupancy, compare_all
from serving.batch.summary.origin import origin_of
from serving.batch.summary.table import Table, TableError
from serving.batch.summary.tally import CONFIDENCE_BINS, DOUBTFUL, Listed, Tally
from serving.bundle import Bundle, Manifest
from serving.judgement import ATYPICAL_BELOW


@dataclass(frozen=True)
class ErrorFigures:
    """Images without an answer, by code, with the key and message of a few."""

    code: str
    images: int
    examples: list[tuple[str, str]]


@dataclass(frozen=True)
class ClassFigures:
    """Images that were taken for a class, their share of those with an answer, and their mean probability."""

    label: str
    images: int
    share: float
    mean_probability: float | None


@dataclass(frozen=True)
class Confidence:
    """The probability of the likeliest class: mean, histogram, and the share of images below each of some bounds."""

    mean: float
    edges: list[float]
    counts: list[int]
    below: dict[str, float]


@dataclass(frozen=True)
class Quantile:
    """A quantile of the test split's log-density, and the share of the table's images below it."""

    share: float
    log_density: float
    found: float


@dataclass(frozen=True)
class Typicality:
    """The log-density against that of the test split.

    Attributes:
        quantiles: of the test split.
        histogram: of the table.
        atypical: share of images below the 1 % quantile.
        above: share above the 99 % quantile.
        expected: either share on images like those of the test split.
    """

    quantiles: list[Quantile]
    histogram: Histogram
    atypical: float
    above: float
    expected: float


@dataclass(frozen=True)
class Density:
    """The log-density in nats: its mean here and on the test split, and how typical it is; None is not known."""

    mean: float
    split_mean: float | None
    typicality: Typicality | None


@dataclass(frozen=True)
class AmongHeldOut:
    """How typical the images are among the held-out ones.

    Attributes:
        tenths: share of images in each tenth of the typicality, from the least; all are equal if nothing has changed.
        atypical: share of images below `expected`.
        expected: that share on images like the held-out ones, at most.
    """

    tenths: list[float]
    atypical: float
    expected: float


@dataclass(frozen=True)
class Figures:
    """All of a table.

    Attributes:
        table: where it lies.
        model: its name and version, as the table has them.
        bundle_digest: of the bundle that made every row.
        rows: images, with an answer or without.
        answered: those with one.
        errors: the others, the most frequent code first.
        classes: in the bundle's order.
        confidence: None if no image has an answer.
        typicality: None likewise, and if the table has none.
        density: None if there is none, or no image has an answer.
        occupancy: of each class; None if classes have one component, the bundle does not say how they were on the test
            split, or no image has an answer.
        least_typical: images of the lowest log-density, the lowest first.
        closest_to_a_tie: images of the least margin, the least first; where the table has no margins, of the lowest
            probability.
        by_margin: which of both.
        source: where the images are, as the table says; None if it does not.
        precision: of the graph that scored them.
        missing_parts: of a folder of parts, those that the job has yet to write.
    """

    table: str
    model: str
    version: int
    bundle_digest: str
    rows: int
    answered: int
    errors: list[ErrorFigures]
    classes: list[ClassFigures]
    confidence: Confidence | None
    typicality: AmongHeldOut | None
    density: Density | None
    occupancy: list[ClassOccupancy] | None
    least_typical: list[Listed]
    closest_to_a_tie: list[Listed]
    by_margin: bool
    source: dict[str, Any] | None
    precision: str
    missing_parts: int


def figures_of(table: Table, bundle: Bundle) -> Figures:
    """Read a table once and count.

    Raises:
        TableError: if the table is empty, cannot be read, or is not of this bundle alone.
    """
    tally = Tally.of(bundle)
    for batch in table.batches():
        tally.add(batch)
    if tally.model is None:
        raise TableError(f"{table.place} must have at least one row, got none: score something first")
    return _figures(table, bundle, tally, tally.model)


def _figures(table: Table, bundle: Bundle, tally: Tally, model: tuple[str, int]) -> Figures:
    answered, origin = int(tally.counts.sum()), origin_of(table)
    return Figures(
        table=str(table.place),
        model=model[0],
        version=model[1],
        bundle_digest=bundle.digest,
        rows=tally.rows,
        answered=answered,
        errors=[ErrorFigures(code, count, tally.messages[code]) for code, count in tally.errors.most_common()],
        classes=_classes(tally, answered),
        confidence=_confidence(tally, answered) if answered else None,
        typicality=_among_held_out(tally),
        density=_density(tally, bundle.manifest),
        occupancy=compare_all(bundle.manifest, tally.occupancy) if answered else None,
        least_typical=tally.atypical.rows,
        closest_to_a_tie=tally.ties.rows,
        by_margin=any(row.margin is not None for row in tally.ties.rows),
        source=origin.source,
        precision=origin.options.precision,
        missing_parts=origin.missing_parts(table),
    )


def _classes(tally: Tally, answered: int) -> list[ClassFigures]:
    return [
        ClassFigures(label, int(count), count / max(answered, 1), float(total / count) if count else None)
        for label, count, total in zip(tally.labels, tally.counts.tolist(), tally.probability, strict=True)
    ]


def _confidence(tally: Tally, answered: int) -> Confidence:
    edges = (np.arange(CONFIDENCE_BINS + 1) / CONFIDENCE_BINS).tolist()
    below = {str(bound): int(count) / answered for bound, count in zip(DOUBTFUL, tally.doubtful, strict=True)}
    return Confidence(float(tally.probability.sum()) / answered, edges, tally.confidence.tolist(), below)


def _among_held_out(tally: Tally) -> AmongHeldOut | None:
    if not (count := int(tally.typicality.sum())):
        return None
    return AmongHeldOut((tally.typicality / count).tolist(), tally.untypical / count, ATYPICAL_BELOW)


def _density(tally: Tally, manifest: Manifest) -> Density | None:
    total, count = tally.log_density
    if not count:
        return None
    typicality = None if tally.density is None else _typicality(tally.density)
    return Density(total / count, manifest.metrics.get("log_density"), typicality)


def _typicality(density: DensityTally) -> Typicality:
    columns = zip(density.shares.tolist(), density.quantiles.tolist(), density.below.tolist(), strict=True)
    quantiles = [Quantile(share, value, below / density.images) for share, value, below in columns]
    atypical = next(quantile.found for quantile in quantiles if quantile.share == LOW)
    return Typicality(quantiles, density.histogram(), atypical, density.above / density.images, LOW)
