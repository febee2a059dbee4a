"""Intervals: against published and textbook ones, against normal theory, and how often they hold the truth."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from training.calibration_error import calibration_error, equal_mass_bins, equal_width_bins
from training.intervals import Interval, accuracy_interval, auroc_interval, ece_interval, nll_interval


def test_accuracy_interval_is_wilsons() -> None:
    """Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }

    for (right, images), ends in published.items():
        assert accuracy_interval(right, images) == pytest.approx(ends, abs=6e-5)


@pytest.mark.parametrize(("right", "images"), [(0, 0), (3, 2), (-1, 2)])
def test_shares_that_are_none_are_refused(right: int, images: int) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^right must be from 0 to images, of which one at least must be there, got {right} of {images}$",
    ):
        accuracy_interval(right, images)


def test_nll_interval_is_that_of_a_mean() -> None:
    nll = np.random.default_rng(3).exponential(0.2, 4_000)

    low, high = nll_interval(nll)

    half = 1.96 * nll.std() / np.sqrt(4_000)
    assert (low, high) == pytest.approx((nll.mean() - half, nll.mean() + half), abs=0.2 * half)


def test_auroc_interval_is_that_of_hanley_and_mcneil() -> None:
    """Their standard error, 1982, The Meaning and Use of the Area under a ROC Curve, Radiology 143, for this area."""
    rng = np.random.default_rng(4)
    known, strangers = rng.exponential(4.0, 500), rng.exponential(1.0, 400)  # for which the formula is exact

    low, high = auroc_interval(known, strangers)

    area = roc_auc_score([1] * 500 + [0] * 400, np.concatenate([known, strangers]))
    both_known, both_strange = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + 499 * (both_known - area**2) + 399 * (both_strange - area**2)
    half = 1.96 * np.sqrt(variance / (500 * 400))
    assert (low, high) == pytest.approx((area - half, area + half), abs=0.2 * half)


def test_auroc_of_equal_scores_counts_half() -> None:
    rng = np.random.default_rng(6)

    low, high = auroc_interval(rng.integers(0, 3, 300), rng.integers(0, 3, 300))

    assert low < 0.5 < high
    assert auroc_interval(np.ones(20), np.ones(30)) == (0.5, 0.5)
    assert auroc_interval(np.full(20, 2.0), np.ones(30)) == (1.0, 1.0)


def answers(count: int, gap: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Confidences, and which are right: less often than they say, by `gap`, which is the ECE of all images."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(8, 1, count) / 2 + 0.5
    return confidence, rng.random(count) < confidence - gap


@pytest.mark.parametrize("bins", [equal_width_bins, equal_mass_bins])
@pytest.mark.parametrize("gap", [0.0, 0.05])
def test_ece_interval_holds_the_ece_of_all_images(
    bins: Callable[[NDArray[np.float64]], NDArray[np.int64]], gap: float
) -> None:
    """A calibrated classifier's ECE is 0, which no sample has."""
    held = 0
    for seed in range(20):
        confidence, right = answers(500, gap, seed)
        bin_of = bins(confidence)
        low, high = ece_interval(confidence, right, bin_of)
        held += low <= gap <= high
        assert low <= round(calibration_error(confidence, right, bin_of), 6) <= high

    assert held >= 17  # of 20, at 95 % each: fewer once in 60 tests


def test_ece_interval_narrows_with_more_images() -> None:
    few, many = (answers(count, 0.05, seed=1) for count in (200, 20_000))

    (low, high), (lower, upper) = (ece_interval(*split, equal_width_bins(split[0])) for split in (few, many))

    assert upper - lower < 0.2 * (high - low)
    assert 0.04 < lower < 0.05 < upper < 0.06


def test_intervals_are_seeded_and_go_into_json() -> None:
    nll = np.random.default_rng(0).exponential(1.0, 100)

    first, again, other = nll_interval(nll, seed=1), nll_interval(nll, seed=1), nll_interval(nll, seed=2)

    assert first == again != other
    assert json.loads(json.dumps(Interval(0.25, 0.5))) == [0.25, 0.5]


def test_interval_of_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^an interval must have at least 2 images to draw from, got 1$"):
        nll_interval(np.array([0.5]))
    with pytest.raises(ValueError, match=r"^an interval must have at least 2 images to draw from, got 1$"):
        auroc_interval(np.array([0.5, 0.7]), np.array([0.1]))
