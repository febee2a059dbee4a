"""What is counted of a table, a batch of rows at a time. Its size depends on the bundle, not on the table.

tally = Tally.of(bundle)
for batch in table.batches():
    tally.add(batch)
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serving.batch.summary.density import DensityTally
from serving.batch.summary.table import TableError
from serving.bundle import Bundle
from serving.errors import shown
from serving.judgement import ATYPICAL_BELOW

LISTED = 24  # images of a list
MESSAGES = 3  # different ones of an error code,
LOOKED_AT = 100  # from its first rows of a batch
CONFIDENCE_BINS = 50
DOUBTFUL = (0.5, 0.9)  # probabilities below which images are counted
TENTHS = np.arange(1, 11) / 10  # of the typicality; each holds what is above the one before

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Listed:
    """An image of a list, with what the table says of it.

    Attributes:
        margin: between the probabilities of the two likeliest classes; None if the table holds only one of them.
    """

    key: str
    label: str
    probability: float
    component: int | None
    log_density: float | None
    margin: float | None


@dataclass
class Lowest:
    """The rows with the least values so far, the least first; of equals, the earlier."""

    values: list[float] = field(default_factory=list)
    rows: list[Listed] = field(default_factory=list)

    def add(self, values: Floats, batch: Any, margins: Floats | None) -> None:
        """Take in a batch: (N,) values, NaN for rows that have none; N rows; and (N,) margins if there are any."""
        candidates = np.flatnonzero(~np.isnan(values))
        if len(self.values) == LISTED:
            candidates = candidates[values[candidates] < self.values[-1]]
        best = candidates[np.argsort(values[candidates], kind="stable")[:LISTED]]
        found = [
            *zip(self.values, self.rows, strict=True),
            *zip(values[best], _rows(batch, best, margins), strict=True),
        ]
        found = sorted(found, key=lambda pair: pair[0])[:LISTED]  # a stable sort
        self.values, self.rows = [float(value) for value, _ in found], [row for _, row in found]


@dataclass
class Tally:
    """Counts over the rows so far, for C classes of K components.

    Attributes:
        digest: of the bundle that all rows must be from.
        labels: the C names.
        counts: images of each class, (C,).
        probability: sum of their probabilities, (C,).
        occupancy: images of each component, (C, K).
        confidence: images in each bin of `probability`.
        doubtful: images below each of DOUBTFUL.
        density: of log-densities; None where the bundle does not say what is usual.
        log_density: sum of log-densities, in nats, and how many there are.
        typicality: images in each of TENTHS.
        untypical: images that are called atypical by their typicality.
        errors: rows by error code.
        messages: (key, message) of a few of them.
        atypical: the images of lowest log-density.
        ties: those of the least margin, or, without one, probability.
        rows: how many.
        model: name and version, as the first row has them.
    """

    digest: str
    labels: tuple[str, ...]
    counts: NDArray[np.int64]
    probability: Floats
    occupancy: NDArray[np.int64]
    density: DensityTally | None
    rows: int = 0
    model: tuple[str, int] | None = None
    confidence: NDArray[np.int64] = field(default_factory=lambda: np.zeros(CONFIDENCE_BINS, np.int64))
    doubtful: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(DOUBTFUL), np.int64))
    log_density: tuple[float, int] = (0.0, 0)
    typicality: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(TENTHS), np.int64))
    untypical: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    messages: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    atypical: Lowest = field(default_factory=Lowest)
    ties: Lowest = field(default_factory=Lowest)

    @classmethod
    def of(cls, bundle: Bundle) -> "Tally":
        """An empty tally for tables of one bundle."""
        head, labels = bundle.manifest.head, bundle.manifest.labels
        density = DensityTally.of(bundle.manifest.metrics.get("log_density_quantiles"))
        occupancy = np.zeros((head.classes, head.components), np.int64)
        return cls(bundle.digest, labels, np.zeros(head.classes, np.int64), np.zeros(head.classes), occupancy, density)

    def add(self, batch: Any) -> None:
        """Count a batch of rows.

        Raises:
            TableError: if they are not of this bundle, or hold what it cannot have answered.
        """
        _require_all("rows", batch, "key", "model", "version")
        _require_digest(batch, self.digest)
        if self.model is None and len(batch):
            self.model = (batch["model"][0].as_py(), batch["version"][0].as_py())
        self.rows += len(batch)
        answered = pc.is_valid(batch["label"])
        self._add_errors(batch.filter(pc.invert(answered)))
        answers = batch.filter(answered)
        if len(answers):
            _require_all("answers", answers, "probability")
            self._add_answers(answers)

    def _add_errors(self, batch: Any) -> None:
        codes = pc.fill_null(batch["error_code"], "unknown")
        for count in pc.value_counts(codes).to_pylist():
            code = count["values"]
            self.errors[code] += count["counts"]
            examples = self.messages.setdefault(code, [])
            for row in batch.filter(pc.equal(codes, code)).slice(0, LOOKED_AT).to_pylist():
                message = row["error_message"] or ""
                if len(examples) < MESSAGES and all(message != other for _, other in examples):
                    examples.append((row["key"], message))

    def _add_answers(self, batch: Any) -> None:
        classes, probability = self._classes(batch), _numbers(batch, "probability")
        self.counts += np.bincount(classes, minlength=len(self.labels))
        self.probability += np.bincount(classes, probability, len(self.labels))
        self.confidence += np.histogram(probability.clip(0, 1), CONFIDENCE_BINS, (0, 1))[0]
        self.doubtful += [np.count_nonzero(probability < bound) for bound in DOUBTFUL]
        self._add_components(batch, classes)
        margins = _margins(batch)
        self.ties.add(probability if margins is None else margins, batch, margins)
        density = _numbers(batch, "log_density")
        self.atypical.add(density, batch, margins)
        self._add_density(density[~np.isnan(density)])
        typicality = _numbers(batch, "typicality")
        self._add_typicality(typicality[~np.isnan(typicality)])

    def _add_components(self, batch: Any, classes: NDArray[np.int64]) -> None:
        component = np.asarray(batch["component"].fill_null(-1), np.int64)
        count = self.occupancy.shape[1]
        if component.max() >= count:
            raise TableError(f"component must be below {count}, as the bundle has it, got {component.max()}")
        known = component >= 0
        flat = np.bincount(classes[known] * count + component[known], minlength=self.occupancy.size)
        self.occupancy += flat.reshape(self.occupancy.shape)

    def _add_density(self, density: Floats) -> None:
        total, count = self.log_density
        self.log_density = (total + float(density.sum()), count + len(density))
        if self.density is not None:
            self.density.add(density)

    def _add_typicality(self, typicality: Floats) -> None:
        if len(typicality) and not 0 < typicality.min() <= typicality.max() <= 1:
            raise TableError("typicality must be above 0 and at most 1 or null, got others: is the table damaged?")
        self.typicality += np.bincount(np.searchsorted(TENTHS, typicality), minlength=len(TENTHS))
        self.untypical += int(np.count_nonzero(typicality < ATYPICAL_BELOW))

    def _classes(self, batch: Any) -> NDArray[np.int64]:
        found = pc.index_in(batch["label"], pa.array(self.labels))
        if found.null_count:
            stranger = batch.filter(pc.is_null(found))["label"][0].as_py()
            raise TableError(f"label must be one of the bundle's, got {shown(stranger)}: is the table damaged?")
        return np.asarray(found, np.int64)


def _require_all(what: str, batch: Any, *columns: str) -> None:
    for column in columns:
        if missing := batch[column].null_count:
            raise TableError(f"{column} must be in all {what}, got {missing} without: is the table damaged?")


def _require_digest(batch: Any, digest: str) -> None:
    for found in pc.unique(batch["bundle_digest"]).to_pylist():
        if found != digest:
            raise TableError(
                f"every row must be of the bundle with digest {digest}, got one of {found or 'no bundle'}: "
                "name the bundle that scored the table, or score it again in one piece"
            )


def _numbers(batch: Any, column: str) -> Floats:
    """The values of a column, NaN for null.

    Raises:
        TableError: if one is not finite.
    """
    values = batch[column].cast(pa.float64())
    numbers = values.to_numpy(zero_copy_only=False)
    if not np.isfinite(numbers).sum() == len(values) - values.null_count:
        raise TableError(f"{column} must be a finite number or null, got others: is the table damaged?")
    return np.asarray(numbers, np.float64)


def _margins(batch: Any) -> Floats | None:
    """By how much the likeliest class leads, (N,), NaN for rows without a second; None if no row has one."""
    top = batch["top_k"]
    counts = np.asarray(pc.list_value_length(top).fill_null(0), np.int64)
    if not (counts > 1).any():
        return None
    probability = np.asarray(top.flatten().field("probability").cast(pa.float64()), np.float64)
    first = np.cumsum(counts) - counts
    margins = np.full(len(counts), np.nan)
    several = counts > 1
    margins[several] = probability[first[several]] - probability[first[several] + 1]
    return margins


def _rows(batch: Any, positions: NDArray[np.int64], margins: Floats | None) -> list[Listed]:
    columns = ["key", "label", "probability", "component", "log_density"]
    rows = batch.select(columns).take(pa.array(positions)).to_pylist()
    own = [None] * len(rows) if margins is None else [None if np.isnan(m) else float(m) for m in margins[positions]]
    return [Listed(**row, margin=margin) for row, margin in zip(rows, own, strict=True)]
