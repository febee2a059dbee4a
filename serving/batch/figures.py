"""What is told of a scored table: images, errors, classes and components, how dense, how long each stage took."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self, get_args

import numpy as np

from serving.bundle import Bundle
from serving.errors import ServingError
from serving.judgement import ATYPICAL_BELOW
from serving.predictor import Predictor
from serving.runtimes import Outputs

Stage = Literal["read", "decode", "infer", "write"]


@dataclass
class Figures:
    """Sums over rows.

    Attributes:
        images: rows.
        errors: how many got each error, by its code.
        assigned: images of each class and component, (C, K) as lists.
        log_density: the sum of it in nats; None for a bundle without densities.
        typicality: the sum of it; None for a bundle without held-out images.
        atypical: images less typical than all but one in a hundred of the held-out images, or, without those, less
            dense than as many of the test images; None if neither is known.
        batches: calls of the graph.
        full: how many of them had as many images as they may.
        seconds: of each stage; they add up to the time that the workers took.
    """

    images: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    assigned: list[list[int]] = field(default_factory=list)
    log_density: float | None = None
    typicality: float | None = None
    atypical: int | None = None
    batches: int = 0
    full: int = 0
    seconds: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(get_args(Stage), 0.0))

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """Nothing yet, for a bundle's classes and components."""
        manifest = bundle.manifest
        dense, judged = "log_density" in manifest.outputs, manifest.held_out is not None
        components = manifest.head.components
        return cls(
            assigned=[[0] * components for _ in manifest.labels],
            log_density=0.0 if dense else None,
            typicality=0.0 if judged else None,
            atypical=0 if judged or (dense and manifest.atypical_below is not None) else None,
        )

    @property
    def failed(self) -> int:
        """How many images got an error instead of an answer."""
        return sum(self.errors.values())

    def count(self, found: Sequence[int | ServingError], outputs: Outputs | None, predictor: Predictor) -> None:
        """Add some images: for each its place in the outputs of the predictor, or its error."""
        self.images += len(found)
        for error in found:
            if isinstance(error, ServingError):
                self.errors[error.code] = self.errors.get(error.code, 0) + 1
        if outputs is None:
            return
        posterior = outputs["posterior"]
        best = posterior.argmax(1)
        component = np.zeros_like(best)
        if "responsibilities" in outputs:
            component = outputs["responsibilities"][np.arange(len(best)), best].argmax(1)
        assigned = np.array(self.assigned)
        np.add.at(assigned, (best, component), 1)
        self.assigned = assigned.tolist()
        if self.log_density is not None:
            self.log_density += float(outputs["log_density"].astype(np.float64).sum())
        if predictor.held_out is not None:
            typicality = predictor.held_out.typicality(outputs["typicality_score"])
            self.typicality = (self.typicality or 0) + float(typicality.sum())
            self.atypical = (self.atypical or 0) + int((typicality < ATYPICAL_BELOW).sum())
        elif self.atypical is not None:
            self.atypical += int((outputs["log_density"] < predictor.bundle.manifest.atypical_below).sum())


def total(parts: Iterable[Figures]) -> Figures:
    """All of them together."""
    whole = Figures()
    for part in parts:
        whole.images += part.images
        whole.batches += part.batches
        whole.full += part.full
        for code, count in part.errors.items():
            whole.errors[code] = whole.errors.get(code, 0) + count
        for stage, seconds in part.seconds.items():
            whole.seconds[stage] += seconds
        whole.assigned = (np.array(part.assigned) + np.array(whole.assigned or 0)).tolist()
        if part.log_density is not None:
            whole.log_density = (whole.log_density or 0) + part.log_density
        if part.typicality is not None:
            whole.typicality = (whole.typicality or 0) + part.typicality
        if part.atypical is not None:
            whole.atypical = (whole.atypical or 0) + part.atypical
    return whole


class Laps:
    """A stopwatch whose time goes to one stage after the other."""

    def __init__(self, figures: Figures) -> None:
        self._seconds = figures.seconds
        self._last = time.perf_counter()

    def lap(self, stage: Stage) -> None:
        """Give a stage the time since the last lap."""
        now = time.perf_counter()
        self._seconds[stage] += now - self._last
        self._last = now
