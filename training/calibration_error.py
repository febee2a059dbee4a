"""The expected calibration error (ECE): how far confidence and accuracy are apart, bin by bin of the confidence.

    calibration_error(confidence, right, equal_width_bins(confidence))

Bins of equal width are the usual ones, but where nearly every image is in the last of them the ECE says little of the
others. Bins of equal mass hold about as many images each.

References: Guo et al. 2017, On Calibration of Modern Neural Networks, ICML; Nguyen & O'Connor 2015, Posterior
Calibration and Exploratory Analysis for Natural Language Processing Models, EMNLP (equal mass).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

ECE_BINS = 15
TRADE = (
    "T is fitted to the NLL, which weighs every error by how sure it was; the ECE compares means over bins, "
    "so what lowers the one may raise the other"
)

FloatArray = NDArray[np.float64]
BinNumbers = NDArray[np.int64]  # from 0, (N,)


def confidences(posterior: NDArray[Any], labels: NDArray[np.int64]) -> tuple[FloatArray, NDArray[np.bool_]]:
    """The largest class probability of each image and whether that class is right: (N, C) and (N,) to (N,) and (N,)."""
    confidence: FloatArray = posterior.max(1).astype(np.float64).clip(0, 1)  # float32 may exceed 1
    return confidence, posterior.argmax(1) == labels


def equal_width_bins(confidence: FloatArray, bins: int = ECE_BINS) -> BinNumbers:
    """Bins [k / bins, (k + 1) / bins) of confidences (N,); 1 is in the last."""
    return np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="right").clip(max=bins) - 1


def equal_mass_bins(confidence: FloatArray, bins: int = ECE_BINS) -> BinNumbers:
    """Bins between the quantiles of confidences (N,); equal ones share a bin, so that some may be empty."""
    edges = np.quantile(confidence, np.arange(1, bins) / bins)
    return np.searchsorted(edges, confidence, side="right")


def calibration_error(confidence: FloatArray, right: NDArray[np.bool_], bin_of: BinNumbers) -> float:
    """Mean over the images of the gap between confidence and accuracy in their bin."""
    gaps = np.bincount(bin_of, weights=confidence - right)
    return float(np.abs(gaps).sum() / len(confidence))


def trades_ece_for_nll(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether a temperature lowers the NLL, to which it was fitted, and raises the ECE."""
    return bool(after["nll"] < before["nll"] and after["ece"] > before["ece"])
