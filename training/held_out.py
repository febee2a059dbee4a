"""What the graphs of a bundle answer for images that neither weights nor temperature have seen: its tables.

    images = held_out_images(labelled_images, run.load_judged())    # None if the recipe holds none out
    tables = Tables.of(images, graph, spec)                         # graph: the float32 one
    tables.table(outputs).write(folder / "held_out.int8.npz")       # outputs: what another graph answers for them

They are the split `held_out`; or, of a head fitted in closed form on features that nobody has learned, the training
images, each judged by a head that was fitted without it (training/cross_fit.py). A graph in another precision does not
know those heads. What it makes of an image is then taken to be off from theirs by as much as it is from what the
float32 graph makes of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Bundle, InputSpec
from serving.held_out import HeldOut
from serving.judgement import ATYPICAL_BELOW
from serving.runtimes import Outputs
from training.evaluate import run_graph
from training.groups import Scored, groups_of
from training.images import LabelledImages, Streamed
from training.prediction_sets import set_figures
from training.splits import stratified_order
from training.typicality import Judged

MOST_IMAGES = 10_000  # of a table


@dataclass(frozen=True)
class HeldOutImages:
    """Held-out images.

    Attributes:
        part: those.
        judged: for training images, what heads fitted without them make of them.
        calibration: those that the temperature was fitted to, by which it is told which classes are alike.
    """

    part: Streamed
    judged: Judged | None = None
    calibration: Streamed | None = None

    @property
    def by(self) -> Literal["split", "cross-fit"]:
        """How they were held out."""
        return "split" if self.judged is None else "cross-fit"


def held_out_images(images: LabelledImages, judged: Judged | None) -> HeldOutImages | None:
    """The images that answers are compared with: at most 10,000, every class in its share.

    Args:
        images: with their splits.
        judged: of all training images, or of those among them that this function has chosen before.

    Returns:
        None if none were held out.
    """
    positions = images.splits.get("held_out") if judged is None else images.splits["train"]
    if positions is None:
        return None
    labels = images.dataset.labels
    chosen = stratified_order(labels[positions], seed=0)[:MOST_IMAGES].sort().values
    if judged is not None and len(judged.typicality_scores) == len(positions):
        judged = Judged(*(values[chosen.numpy()] for values in judged))
    part = Streamed(images.dataset.images[positions[chosen]], labels[positions[chosen]])
    calibration = images.streamed("calibration") if "calibration" in images.splits else None
    return HeldOutImages(part, judged, calibration)


def held_out_of(bundle: Bundle, images: LabelledImages) -> HeldOutImages | None:
    """The images that a finished bundle's answers are compared with; None if it has none.

    Args:
        bundle: what training images were judged by is in the table of its float32 graph.
        images: those that it was trained on, with their splits.
    """
    info, file = bundle.manifest.held_out, bundle.held_out()
    if info is None or file is None:
        return None
    table = HeldOut.read(file)
    judged = Judged(table.typicality_scores, table.label_probabilities)
    return held_out_images(images, None if info.by == "split" else judged)


@dataclass(frozen=True)
class Tables:
    """Makes the tables of a bundle's graphs.

    Attributes:
        images: the held-out ones.
        plain: what the float32 graph answers for them.
        groups: of the classes, (C,), the same in every table.
    """

    images: HeldOutImages
    plain: Outputs
    groups: NDArray[np.int64]

    @classmethod
    def of(cls, images: HeldOutImages, graph: Callable[[NDArray[np.uint8]], Outputs], spec: InputSpec) -> Self:
        """Ask the float32 graph."""
        plain, others = run_graph(graph, images.part.images, spec), None
        if (calibration := images.calibration) is not None:
            others = _scored(run_graph(graph, calibration.images, spec), calibration)
        return cls(images, plain, groups_of(images.part.labels.numpy(), plain["posterior"].shape[1], others))

    def table(self, outputs: Outputs) -> HeldOut:
        """The table of a graph that answers `outputs` for the images."""
        (labels, probabilities), scores = _scored(outputs, self.images.part), outputs["typicality_score"]
        if (judged := self.images.judged) is not None:
            scores = judged.typicality_scores + (scores - self.plain["typicality_score"])
            before = _scored(self.plain, self.images.part).label_probabilities
            odds = np.exp(_log_odds(judged.label_probabilities) + _log_odds(probabilities) - _log_odds(before))
            probabilities = (odds / (1 + odds)).astype(np.float32)
        return HeldOut(scores, probabilities, labels, self.groups)


def compared(outputs: Outputs, labels: NDArray[np.int64], held_out: HeldOut) -> dict[str, Any]:
    """What comparing a split's answers with held-out images is worth.

    Args:
        outputs: for the split's images.
        labels: of them, (N,).
        held_out: of the same graph.

    Returns:
        atypical, the share of images with a typicality below 1 %; sets, by coverage (see `set_figures`).
    """
    typicality = held_out.typicality(outputs["typicality_score"])
    return {
        "atypical": round(float((typicality < ATYPICAL_BELOW).mean()), 6),
        "sets": set_figures(outputs["posterior"], labels, held_out),
    }


def _scored(outputs: Outputs, part: Streamed) -> Scored:
    labels = part.labels.numpy()
    return Scored(labels, outputs["posterior"][np.arange(len(labels)), labels])


def _log_odds(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    within = probabilities.astype(np.float64).clip(1e-12, 1 - 1e-12)
    odds: NDArray[np.float64] = np.log(within / (1 - within))
    return odds
