"""A bias a class beside the temperature, so that softmax(delta / T + b) has the class shares of held-out images.

    found = find_biases(scaled, labels, fold)             # (N, C), (N,), (N,)
    found.biases                                          # (C,), all zero if they help no image

A temperature makes a classifier as sure as it is right over all classes; a class may still be named too often. That
harms little as long as images come as they did in training, and much once probabilities are moved to other class shares
(`parameters.priors`): for that they must be right class by class.

The biases have the least negative log-likelihood under a Gaussian prior around zero, whose width is `WIDTH` nats, and
sum to zero. They are kept only if over five folds they lower the negative log-likelihood of images that they were not
fitted to, by more than its standard error.

Reference: Alexandari, Kundaje & Shrikumar 2020, Maximum Likelihood with Bias-Corrected Calibration is Hard-To-Beat at
Label Shift Adaptation, ICML.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

WIDTH = 0.3  # nats
DIGITS = 4  # after the point

FloatArray = NDArray[np.float64]


class FoundBiases(NamedTuple):
    """What held-out images say of biases.

    Attributes:
        fitted: the biases that suit them, (C,).
        images: how many there are.
        folds: over how many of them the biases were judged.
        nll_without: their mean negative log-likelihood in nats without biases.
        nll_cross_fitted: the same of each fold with the biases fitted on the others.
        standard_error: of the difference of the two.
    """

    fitted: tuple[float, ...]
    images: int
    folds: int
    nll_without: float
    nll_cross_fitted: float
    standard_error: float

    @property
    def helps(self) -> bool:
        """Whether they suit images that they were not fitted to."""
        return self.nll_without - self.nll_cross_fitted > self.standard_error

    @property
    def why(self) -> str:
        """Why they are those, in words."""
        verdict = "kept" if self.helps else "left out"
        change = f"from {self.nll_without:.4f} to {self.nll_cross_fitted:.4f} nats"
        where = f"over {self.folds} folds of {self.images:,} images, the NLL of others goes {change}"
        return f"{verdict}: {where}, give or take {self.standard_error:.4f}"

    @property
    def biases(self) -> tuple[float, ...]:
        """The fitted ones if they help, else zeros."""
        return self.fitted if self.helps else (0.0,) * len(self.fitted)


def find_biases(log_joints: Tensor, labels: Tensor, fold: Tensor) -> FoundBiases:
    """Fit a bias a class and judge them on images that they were not fitted to.

    Args:
        log_joints: of held-out images, divided by the temperature, (N, C).
        labels: int64 (N,).
        fold: which one an image is in, from 0 on, (N,).
    """
    scaled, truth, fold_of = (values.cpu().numpy() for values in (log_joints.double(), labels, fold))
    folds = int(fold_of.max(initial=-1)) + 1
    without = _nll(scaled, truth)
    cross_fitted = np.empty_like(without)
    for own in (fold_of == k for k in range(folds)):
        cross_fitted[own] = _nll(scaled[own] + fit_biases(scaled[~own], truth[~own]), truth[own])
    difference = without - cross_fitted
    fitted = tuple(float(value) for value in fit_biases(scaled, truth).round(DIGITS) + 0.0)
    count = max(1, len(truth))
    error = float(np.sqrt(np.square(difference - difference.sum() / count).sum()) / count)
    nll_without, nll_cross_fitted = float(without.sum()) / count, float(cross_fitted.sum()) / count
    return FoundBiases(fitted, len(truth), folds, nll_without, nll_cross_fitted, error)


def fit_biases(scaled: FloatArray, labels: NDArray[np.int64]) -> FloatArray:
    """The likeliest biases under the prior, (C,).

    Args:
        scaled: log-joints at their temperature, (N, C).
        labels: (N,).
    """
    from scipy.optimize import minimize
    from scipy.special import softmax

    classes = scaled.shape[1]
    counts = np.bincount(labels, minlength=classes)

    def cost(biases: FloatArray) -> tuple[float, FloatArray]:
        moved = scaled + biases
        gradient = softmax(moved, axis=1).sum(0) - counts + biases / WIDTH**2
        return float(_nll(moved, labels).sum() + 0.5 * np.square(biases / WIDTH).sum()), gradient

    found: FloatArray = minimize(cost, np.zeros(classes), jac=True, method="L-BFGS-B").x
    found -= found.mean()
    return found


def _nll(scaled: FloatArray, labels: NDArray[np.int64]) -> FloatArray:
    from scipy.special import logsumexp

    nll: FloatArray = logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]
    return nll
