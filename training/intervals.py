"""95 % intervals of a split's figures: what they may be on all images of its kind.

    accuracy_interval(right=9_969, images=10_000)     # Interval(low=0.995603, high=0.997815)

Wilson's interval for a share; for the rest a bootstrap over images, seeded, so that the same answers give the same
interval. None says anything of another training of the same recipe: that is what several seeds are for.

References: Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference, J. Am. Stat. Assoc. 22;
Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13; Bröcker & Smith 2007, Increasing the Reliability
of Reliability Diagrams, Weather and Forecasting 22.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.calibration_error import BinNumbers, FloatArray, calibration_error

CONFIDENCE = 0.95
RESAMPLES = 1_000
AT_ONCE = 50  # resamples, for the memory of a large split


class Interval(NamedTuple):
    """The two ends; a list in JSON."""

    low: float
    high: float


def accuracy_interval(right: int, images: int) -> Interval:
    """Wilson's interval of the accuracy `right / images`.

    Raises:
        ValueError: if there are no images, or more right ones than images.
    """
    from scipy.stats import binomtest

    if not 0 <= right <= images or images == 0:
        raise ValueError(
            f"right must be from 0 to images, of which one at least must be there, got {right} of {images}"
        )
    found = binomtest(right, images).proportion_ci(CONFIDENCE, method="wilson")
    return _rounded(found.low, found.high)


def nll_interval(nll: FloatArray, seed: int = 0) -> Interval:
    """Interval of the mean of negative log-likelihoods (N,), by the percentiles of the bootstrap.

    Raises:
        ValueError: if there are fewer than two images.
    """
    return _bootstrap((nll,), np.mean, seed)


def ece_interval(confidence: FloatArray, right: NDArray[np.bool_], bin_of: BinNumbers, seed: int = 0) -> Interval:
    """Interval of `calibration_error` of confidences (N,), in bins that stay as they are.

    Chance alone makes an ECE larger, for it is a mean of absolute values: a sample's is above that of all images, and a
    resample's above the sample's. The high end is the bootstrap's. The low end is as far below the ECE as that is above
    it, but 0 if a calibrated classifier, whose labels are drawn with its own confidences, may well reach that ECE.

    Raises:
        ValueError: if there are fewer than two images.
    """

    def of_resample(at: NDArray[np.int64]) -> float:
        return calibration_error(confidence[at], right[at], bin_of[at])

    ece, generator = calibration_error(confidence, right, bin_of), np.random.default_rng(seed)
    high = _bootstrap((np.arange(len(confidence)),), of_resample, seed).high
    draws = (generator.random(len(confidence)) < confidence for _ in range(RESAMPLES))
    by_chance = np.quantile([calibration_error(confidence, drawn, bin_of) for drawn in draws], (1 + CONFIDENCE) / 2)
    return _rounded(0.0 if ece <= by_chance else max(0.0, 2 * ece - high), max(ece, high))


def auroc_interval(known: FloatArray, strangers: FloatArray, seed: int = 0) -> Interval:
    """Interval of the area under the ROC curve of a score, higher for the known (N,) than for strangers (M,).

    By the percentiles of the bootstrap, which draws from both anew.

    Raises:
        ValueError: if there are fewer than two images of either.
    """
    values, place = np.unique(np.concatenate([known, strangers]), return_inverse=True)

    def area(known_at: NDArray[np.int64], strangers_at: NDArray[np.int64]) -> float:
        counts = np.bincount(strangers_at, minlength=len(values))
        below = counts.cumsum() - counts / 2  # strangers below a value; those at it count half
        return float(below[known_at].mean() / len(strangers_at))

    return _bootstrap((place[: len(known)], place[len(known) :]), area, seed)


def _bootstrap(samples: tuple[NDArray[Any], ...], statistic: Callable[..., Any], seed: int) -> Interval:
    """The percentiles of a statistic of resamples, each drawn from its sample with replacement."""
    from scipy.stats import bootstrap

    if (fewest := min(map(len, samples))) < 2:
        raise ValueError(f"an interval must have at least 2 images to draw from, got {fewest}")
    generator = np.random.default_rng(seed)
    found = bootstrap(
        samples, statistic, n_resamples=RESAMPLES, batch=AT_ONCE, vectorized=False, confidence_level=CONFIDENCE,
        method="percentile", rng=generator,
    ).confidence_interval  # fmt: skip
    return _rounded(found.low, found.high)


def _rounded(low: float, high: float) -> Interval:
    return Interval(round(float(low), 6), round(float(high), 6))
