"""What the graphs of a bundle answer for images that neither weights nor temperature have seen: its tables.

    wanted = held_out_images(run, images)                    # None if the recipe holds none out
    table = wanted.table(outputs, outputs_in_float32, groups)   # a serving.held_out.HeldOut, written beside the graph

They are the split `held_out`; or, of a head fitted in closed form on features that nobody has learned, the training
images, each judged by a head that was fitted without it (training/cross_fit.py). A graph in another precision does not
know those heads. What it makes of an image is then taken to be off from theirs by as much as it is from what the
float32 graph makes of it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serving.held_out import HeldOut
from serving.runtimes import Outputs
from training.images import LabelledImages, Streamed
from training.run import Run
from training.splits import stratified_order
from training.typicality import Judged

MOST_IMAGES = 10_000  # of a table


@dataclass(frozen=True)
class HeldOutImages:
    """Held-out images, and for training images what heads fitted without them make of them."""

    part: Streamed
    judged: Judged | None = None

    @property
    def by(self) -> Literal["split", "cross-fit"]:
        """How they were held out."""
        return "split" if self.judged is None else "cross-fit"

    def table(self, outputs: Outputs, plain: Outputs, groups: NDArray[np.int64]) -> HeldOut:
        """A graph's table.

        Args:
            outputs: what it answers for these images.
            plain: what the float32 graph answers for them.
            groups: of classes, (C,).
        """
        labels = self.part.labels.numpy()
        scores, probabilities = _judgement(outputs, labels)
        if self.judged is not None:
            before, before_probabilities = _judgement(plain, labels)
            scores = self.judged.typicality_scores + (scores - before)
            shift = _log_odds(probabilities) - _log_odds(before_probabilities)
            odds = np.exp(_log_odds(self.judged.label_probabilities) + shift)
            probabilities = (odds / (1 + odds)).astype(np.float32)
        return HeldOut(np.sort(scores), probabilities, labels, groups)


def held_out_images(run: Run, images: LabelledImages) -> HeldOutImages | None:
    """The images that a run's answers are compared with: at most 10,000, every class in its share.

    Returns:
        None if the recipe held none out.
    """
    judged = run.load_judged()
    positions = images.splits.get("held_out") if judged is None else images.splits["train"]
    if positions is None:
        return None
    chosen = stratified_order(images.dataset.labels[positions], seed=0)[:MOST_IMAGES].sort().values
    part = Streamed(images.dataset.images[positions[chosen]], images.dataset.labels[positions[chosen]])
    return HeldOutImages(part, judged and Judged(*(array[chosen.numpy()] for array in judged)))


def _judgement(outputs: Outputs, labels: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Typicality scores and the probabilities of the images' own labels, (N,)."""
    return outputs["typicality_score"], outputs["posterior"][np.arange(len(labels)), labels]


def _log_odds(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    within = probabilities.astype(np.float64).clip(1e-12, 1 - 1e-12)
    odds: NDArray[np.float64] = np.log(within / (1 - within))
    return odds
