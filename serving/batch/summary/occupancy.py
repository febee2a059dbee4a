"""How the images of a class fall on its components, against the test split: Cohen's effect size w.

w = sqrt(sum_k (p_k - q_k)^2 / q_k), with shares p of the table and q of the test split; 0.1 is a small effect, 0.3 a
medium and 0.5 a large one (J. Cohen, Statistical Power Analysis for the Behavioral Sciences, 2nd ed. 1988, ch. 7).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Manifest

EFFECTS = ((0.5, "large"), (0.3, "medium"), (0.1, "small"))
TINY = "less than small"
TELLING = 0.3  # if chance alone reaches a medium effect, nothing can be told from it
FEWEST = 5  # images a component that the approximation by chi-squared wants
NORMAL_95 = 1.6448536  # the normal quantile of 0.95
TOO_FEW, NEW, NONE = "too few images to tell", "a component that had no test image", "within chance"

NOTABLE = ("large", "medium", NEW)

Shares = NDArray[np.float64]


@dataclass(frozen=True)
class ClassOccupancy:
    """The components of one class.

    Attributes:
        label: the class.
        images: of the table.
        expected: shares of the test split.
        found: shares of the table; None without images.
        cohens_w: the effect size; None without images, or where it is infinite.
        by_chance: what w would exceed once in twenty times if nothing had changed; None without images.
        effect: in words.
    """

    label: str
    images: int
    expected: list[float]
    found: list[float] | None
    cohens_w: float | None
    by_chance: float | None
    effect: str


def compare_all(manifest: Manifest, counts: NDArray[np.int64]) -> list[ClassOccupancy] | None:
    """Compare the components of each class with the test split of a bundle.

    Args:
        manifest: of the bundle.
        counts: the images of each component, (C, K).

    Returns:
        None if classes have one component, or the bundle does not say how they were on the test split.
    """
    expected = manifest.metrics.get("occupancy")
    if expected is None or manifest.head.components == 1:
        return None
    split_images = manifest.metrics.get("images", 0) / len(manifest.labels)  # of a class, in the mean
    of_classes = zip(manifest.labels, counts, expected, strict=True)
    return [compare(label, of_class, shares, split_images) for label, of_class, shares in of_classes]


def compare(label: str, counts: NDArray[np.int64], expected: Sequence[float], split_images: float) -> ClassOccupancy:
    """Compare the components of a class.

    Args:
        label: the class.
        counts: the table's images of each component, (K,).
        expected: shares of the test split, (K,).
        split_images: about how many images of the class the test split has.
    """
    images, shares = int(counts.sum()), np.array(expected, np.float64)
    if images == 0:
        return ClassOccupancy(label, 0, list(expected), None, None, None, TOO_FEW)
    found = counts / images
    effect_size = cohens_w(found, shares)
    limit = by_chance(len(shares), images, split_images)
    words = _in_words(effect_size, limit, images >= FEWEST * len(shares))
    finite = effect_size if math.isfinite(effect_size) else None
    return ClassOccupancy(label, images, list(expected), found.tolist(), finite, limit, words)


def rank(one: ClassOccupancy) -> float:
    """To sort by: the classes that differ most first, those with too few images last."""
    return {NEW: -math.inf, TOO_FEW: math.inf}.get(one.effect, -(one.cohens_w or 0))


def cohens_w(found: Shares, expected: Shares) -> float:
    """The effect size of shares (K,) against expected ones; infinite where nothing was expected and something is."""
    if (found[expected == 0] > 0).any():
        return math.inf
    used = expected > 0
    return float(np.sqrt(((found[used] - expected[used]) ** 2 / expected[used]).sum()))


def by_chance(components: int, images: int, split_images: float) -> float:
    """What w exceeds once in twenty times if both samples, of so many images, have the same shares.

    n w^2 is then about chi-squared with K - 1 degrees of freedom, where 1 / n is the sum over both samples. Its
    quantile is by E. B. Wilson and M. M. Hilferty, The Distribution of Chi-Square, 1931, within 3 %.
    """
    freedom = components - 1
    spread = 2 / (9 * freedom)
    quantile = freedom * (1 - spread + NORMAL_95 * math.sqrt(spread)) ** 3
    return math.sqrt(quantile * (1 / images + (1 / split_images if split_images else 0)))


def _in_words(effect_size: float, limit: float, enough: bool) -> str:
    if not enough or (effect_size <= limit and limit > TELLING):
        return TOO_FEW
    if effect_size <= limit:
        return NONE
    return NEW if math.isinf(effect_size) else next((word for least, word in EFFECTS if effect_size >= least), TINY)
