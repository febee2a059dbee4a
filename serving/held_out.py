"""What held-out images say of an answer: how typical an image is, and which labels are possible.

    held_out = HeldOut.read(bundle.held_out("float32"))
    held_out.typicality(outputs["typicality_score"])    # (N,), from 1 / (n + 1) to 1
    held_out.possible(outputs["posterior"], 0.9)        # bool (N, C): the right label is in it for 90 % of all images

Neither the weights of the model nor its temperature have seen these images. Both answers are therefore valid for images
like them, whatever the model is worth: of n held-out images, an image that is one of their kind is less typical than a
share p with probability p, and its label is missing from its set with the probability that was asked for, at most.

References: Bates et al. 2023, Testing for Outliers with Conformal p-values, Ann. Statist. 51; Sadinle, Lei & Wasserman
2019, Least Ambiguous Set-Valued Classifiers with Bounded Error Levels, JASA 114; Vovk 2012, Conditional Validity of
Inductive Conformal Predictors, ACML; Ding et al. 2023, Class-Conditional Conformal Prediction with Many Classes,
NeurIPS.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from serving.errors import BadParameter, BundleError

ARRAYS = ("typicality_scores", "label_probabilities", "labels", "groups")
ROUNDING = 1e-9  # of (n + 1) times a coverage, which may be a whole number


def p_values(ascending: NDArray[np.floating], scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """(1 + #{held-out scores no larger}) / (n + 1) of scores (N,) among held-out ones (n,), which are sorted."""
    found: NDArray[np.float64] = (1 + np.searchsorted(ascending, scores, side="right")) / (len(ascending) + 1)
    return found


@dataclass(frozen=True)
class HeldOut:
    """A model's answers for n images that it has not seen.

    Attributes:
        typicality_scores: what the graph answers, float32 (n,).
        label_probabilities: the posterior of each image's own label, float32 (n,).
        labels: of the same images, int64 (n,).
        groups: the group of each class, from 0, int64 (C,). The coverage holds within each group of classes: they are
            the classes themselves where each has enough images, else classes that are alike, or all of them.
    """

    typicality_scores: NDArray[np.float32]
    label_probabilities: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read them from a bundle's file.

        Raises:
            BundleError: if the file holds something else.
        """
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return cls(**{name: arrays[name] for name in ARRAYS})
        except (KeyError, ValueError, OSError) as exc:
            raise BundleError(f"{file} must hold {', '.join(ARRAYS)}, got {exc}") from exc

    def write(self, file: Path) -> None:
        """Write them to a bundle's file."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in ARRAYS}
        np.savez_compressed(file, **arrays)

    def __len__(self) -> int:
        return len(self.typicality_scores)

    @property
    def least_typicality(self) -> float:
        """The smallest p-value that n images can tell: 1 / (n + 1)."""
        return 1 / (len(self) + 1)

    def typicality(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """The share of images of the model's kind that are no more typical: p-values (N,) of scores (N,).

        A score that is no number is less typical than all.
        """
        numbers = np.where(np.isnan(scores), -np.inf, scores).astype(np.float32)
        return p_values(self._ascending_scores, numbers)

    def possible(self, posterior: NDArray[np.floating], coverage: float) -> NDArray[np.bool_]:
        """Which labels are possible: those at least as probable as their group's threshold, and the likeliest.

        Args:
            posterior: (N, C).
            coverage: the share of images whose label is to be among them, above 0 and below 1.

        Returns:
            (N, C), no row without a label.

        Raises:
            BadParameter: if there are too few held-out images for the coverage.
        """
        possible: NDArray[np.bool_] = posterior >= self.thresholds(coverage)
        possible[np.arange(len(posterior)), posterior.argmax(1)] = True
        return possible

    def thresholds(self, coverage: float) -> NDArray[np.float32]:
        """The least probability of a possible label, by class, (C,).

        Raises:
            BadParameter: if there are too few held-out images for the coverage.
        """
        if not 0 < coverage <= self.most_coverage:
            raise BadParameter(
                f"coverage must be above 0 and at most {self.most_coverage:.4g}, as there are {self._fewest} held-out "
                f"images to tell by, got {coverage}"
            )
        of_groups = [
            probabilities[-max(1, math.ceil((len(probabilities) + 1) * coverage - ROUNDING))]
            for probabilities in self._by_group.values()
        ]
        return np.array(of_groups, np.float32)[self.groups]

    @property
    def most_coverage(self) -> float:
        """The greatest coverage that there are enough images for."""
        return self._fewest / (self._fewest + 1)

    @property
    def is_class_conditional(self) -> bool:
        """Whether the coverage holds for each class by itself, and so under other shares of the classes too."""
        return len(self._by_group) == len(self.groups)

    @property
    def _fewest(self) -> int:
        return min(map(len, self._by_group.values()))

    @cached_property
    def _ascending_scores(self) -> NDArray[np.float32]:
        return np.sort(self.typicality_scores)

    @cached_property
    def _by_group(self) -> Mapping[int, NDArray[np.float32]]:
        """The label probabilities of each group of classes, ascending."""
        group = self.groups[self.labels]
        return {g: np.sort(self.label_probabilities[group == g]) for g in range(1 + int(self.groups.max()))}
