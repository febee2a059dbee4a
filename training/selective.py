"""Abstaining: how much less a classifier errs where it leaves the images of which it is least sure to a person.

    aurc(confidence, right)                        # the mean error over all shares of images that are answered
    find_thresholds(pilot, held_out, error=0.01)   # from where on answers hold that error, with 95 % confidence

The risk at a coverage is the error among the share of images that are answered, the most confident ones. AURC is its
mean over all coverages; E-AURC is what the order adds to it: AURC less e + (1 - e) ln(1 - e), which an order that has
every error last would leave (of many images, e of them wrong).

`find_thresholds` is Learn then Test with a fixed sequence. "Of the answers at or above this probability, more than the
error are wrong" is refused by an exact binomial test on held-out images, at one probability after another from high to
low, until one test fails; the last one passed is the threshold. Every test may be at the full level, as the sequence is
fixed before a held-out image is seen: its first probability is where *other* images, the pilot, make the strongest
case. With the confidence asked for, whatever the classifier is worth, the answers that are accepted hold the error.

The threshold on typicality is fixed beforehand. It cuts at an order statistic of the held-out images' scores, so that
those above it are still independent draws from what it accepts.

References: Geifman & El-Yaniv 2017, Selective Classification for Deep Neural Networks, NeurIPS (thresholds that
guarantee a risk); Geifman, Uziel & El-Yaniv 2019, Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, ICLR
(E-AURC); Angelopoulos et al. 2021, Learn then Test, arXiv 2110.01052; Clopper & Pearson 1934, Biometrika 26.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.held_out import p_values
from serving.judgement import ATYPICAL_BELOW

FloatArray = NDArray[np.float64]
Right = NDArray[np.bool_]

CONFIDENCE = 0.95
CANDIDATES = (
    *(n / 10_000 for n in range(9_999, 9_990, -1)),
    *(n / 1_000 for n in range(999, 990, -1)),
    *(n / 100 for n in range(99, -1, -1)),
)  # probabilities that may become the threshold: 0.9999 to 0.9991, 0.999 to 0.991, 0.99 to 0


class Graded(NamedTuple):
    """Answers for images whose labels are known.

    Attributes:
        probability: the largest class probability of each, (N,).
        right: whether that class is right, (N,).
        typicality: p-values among the held-out images, (N,) (`typicality_among`, `own_typicality`); None if the
            classifier has no such score.
    """

    probability: NDArray[Any]
    right: Right
    typicality: FloatArray | None = None

    def at(self, positions: NDArray[np.int64]) -> "Graded":
        """A selection."""
        typicality = None if self.typicality is None else self.typicality[positions]
        return Graded(self.probability[positions], self.right[positions], typicality)


@dataclass(frozen=True)
class Thresholds:
    """Which answers are accepted, and what held-out images say of them.

    Attributes:
        probability: the least largest class probability of an accepted answer.
        typicality: its least typicality, a p-value; None if there is no such score.
        error: the share of accepted answers that may be wrong.
        confidence: with which they hold it.
        images: held-out images.
        accepted: how many of them the thresholds accept.
        wrong: how many of these are wrong.
    """

    probability: float
    typicality: float | None
    error: float
    confidence: float
    images: int
    accepted: int
    wrong: int

    @property
    def error_bound(self) -> float:
        """What at most is wrong of all images that are accepted, with the confidence: Clopper and Pearson's bound."""
        from scipy.stats import beta

        if self.wrong == self.accepted:
            return 1.0
        return float(beta.ppf(self.confidence, self.wrong + 1, self.accepted - self.wrong))

    @property
    def holds(self) -> bool:
        """Whether the accepted answers hold the error."""
        return self.error_bound <= self.error

    @property
    def parameters(self) -> dict[str, Any]:
        """The same as parameters of a request."""
        accept = {"probability": self.probability}
        return {"accept": accept if self.typicality is None else {**accept, "typicality": self.typicality}}


def risks(confidence: NDArray[Any], right: Right) -> FloatArray:
    """The error among the k most confident of N images, for k = 1 to N, (N,).

    Args:
        confidence: (N,). Of equal ones, which are in no order, each counts as wrong as they are in the mean.
        right: whether each answer is right, (N,).
    """
    _, place, counts = np.unique(-confidence, return_inverse=True, return_counts=True)
    wrong = np.bincount(place, ~right) / counts
    among: FloatArray = np.repeat(wrong, counts).cumsum() / np.arange(1, len(right) + 1)
    return among


def aurc(confidence: NDArray[Any], right: Right) -> float:
    """Area under the risk-coverage curve: the mean of `risks`, from 0 (no error) to 1."""
    return float(risks(confidence, right).mean())


def best_aurc(error: float) -> float:
    """AURC of many images, a share `error` of them wrong, in an order that has the wrong ones last."""
    from scipy.special import xlog1py

    return float(error + xlog1py(1 - error, -error))


def excess_aurc(confidence: NDArray[Any], right: Right) -> float:
    """E-AURC: how far `aurc` is above the best that images with as many errors could have, 0 at least."""
    return aurc(confidence, right) - best_aurc(float((~right).mean()))


def typicality_among(held_out: NDArray[Any], scores: NDArray[Any]) -> FloatArray:
    """P-values of scores (N,) among those of held-out images (n,), as served."""
    return p_values(np.sort(held_out), scores)


def own_typicality(held_out: NDArray[Any]) -> FloatArray:
    """The same of the held-out images (n,) themselves, each of which does not count itself."""
    own: FloatArray = np.searchsorted(np.sort(held_out), held_out, side="right") / (len(held_out) + 1)
    return own


def find_thresholds(
    pilot: Graded, held_out: Graded, error: float, confidence: float = CONFIDENCE, typicality: float = ATYPICAL_BELOW
) -> Thresholds:
    """The least probability from which on answers hold an error; `holds` is false if none does.

    Args:
        pilot: answers for other images than the held-out ones, which say where to begin; those of the temperature do.
        held_out: answers for images that neither the weights nor the temperature nor the pilot has seen.
        error: share of accepted answers that may be wrong.
        confidence: probability, over the draw of the held-out images, that the accepted answers hold the error.
        typicality: p-value below which no answer is accepted; unused without such a score.

    Raises:
        ValueError: if error or confidence is not above 0 and below 1, or typicality not from 0 to 1.
    """
    _require_share("error", error)
    _require_share("confidence", confidence)
    if not 0 <= typicality < 1:
        raise ValueError(f"typicality must be at least 0 and below 1, got {typicality}")

    first = int(_p_values(*_counts(pilot, typicality), error).argmin())
    accepted, wrong = _counts(held_out, typicality)
    fails = _p_values(accepted, wrong, error)[first:] > 1 - confidence
    passed = int(fails.argmax()) if fails.any() else len(fails)
    last = first + max(passed, 1) - 1
    least = None if held_out.typicality is None else typicality
    images, found = len(held_out.right), (int(accepted[last]), int(wrong[last]))
    return Thresholds(CANDIDATES[last], least, error, confidence, images, *found)


def fewest_images(error: float, confidence: float = CONFIDENCE) -> int:
    """How many accepted images without one error are needed to hold an error: (1 - error)^n <= 1 - confidence."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-error))


def _counts(judged: Graded, typicality: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many answers each candidate accepts, and how many of these are wrong; (len(CANDIDATES),) each."""
    is_typical = np.full(len(judged.right), True) if judged.typicality is None else judged.typicality >= typicality
    accepted = is_typical & (judged.probability >= np.array(CANDIDATES)[:, None])
    return accepted.sum(1), (accepted & ~judged.right).sum(1)


def _p_values(accepted: NDArray[np.int64], wrong: NDArray[np.int64], error: float) -> FloatArray:
    """P(as few wrong ones or fewer) of so many if the error were exactly what may be; 1 of none."""
    from scipy.stats import binom

    p_values: FloatArray = binom.cdf(wrong, accepted, error)
    return p_values


def _require_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be above 0 and below 1, got {value}")
