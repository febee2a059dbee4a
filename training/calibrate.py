"""Calibration: one temperature T, so that softmax(delta / T) is as confident as it is right.

It changes no decision and neither responsibilities nor log-density. Where a bias a class helps besides, it is added to
delta / T (training/class_biases.py).

T has the least negative log-likelihood on held-out images, plus `PRIOR_NATS` |log T|. Without that term the likelihood
has no maximum where no image is wrong (T falls to zero) or none is right (T grows without end). The term is a Laplace
prior on log T: to move T away from 1, which is the classifier's own word, images must bring ten nats for a factor of e,
at every scale of the log-joints and however far T is.

T is kept only if it helps images that it was not fitted to, those of each fold at the T of the other folds; else it
stays 1. Where it neither helps nor harms them, as when a single error is judged at a T that has not seen it, only a T
above 1 is kept: to be too sure costs without end, to be less sure than one could be costs little.

Reference: Guo et al. 2017, On Calibration of Modern Neural Networks, ICML.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.class_biases import find_biases
from training.classifier import Classifier
from training.fit import log_joints_of
from training.images import Labelled

PRIOR_NATS = 10.0
SEARCHED = np.linspace(-12.0, 12.0, 13)  # of log T; the likelihood may have several peaks
FOLDS = 5
TIE_NATS = 1e-6  # an image, in the mean
DIGITS = 6  # significant ones of T


class FoundTemperature(NamedTuple):
    """What held-out images say of a temperature.

    Attributes:
        fitted: the temperature that suits them.
        images: how many there are.
        nll_at_one: their mean negative log-likelihood in nats at T = 1.
        nll_cross_fitted: the same of each fold at the temperature fitted on the others.
    """

    fitted: float
    images: int
    nll_at_one: float
    nll_cross_fitted: float

    @property
    def temperature(self) -> float:
        """The fitted one if it helps images that it was not fitted to, or is above 1 and does no harm; else 1."""
        most = self.nll_at_one + (TIE_NATS if self.fitted > 1 else -TIE_NATS)
        return self.fitted if self.nll_cross_fitted < most else 1.0

    @property
    def why(self) -> str:
        """Why it is that one, in words."""
        if self.fitted == 1:
            return f"{self.images:,} held-out images do not outweigh the prior"
        verdict = f"fitted on {self.images:,} held-out images"
        if self.temperature == 1:
            verdict = f"{self.fitted:.4g}, {verdict}, does not help"
        change = f"from {self.nll_at_one:.4f} to {self.nll_cross_fitted:.4f} nats"
        return f"{verdict}: over {FOLDS} folds, the NLL of images it was not fitted to goes {change}"


def find_temperature(log_joints: Tensor, labels: Tensor, seed: int) -> FoundTemperature:
    """Fit a temperature and judge it on images that it was not fitted to.

    Args:
        log_joints: of held-out images, (N, C); any N, any scale.
        labels: int64 (N,).
        seed: of the folds.

    Raises:
        ValueError: if a log-joint is not a finite number.
    """
    fitted = fit_temperature(log_joints, labels)
    return FoundTemperature(fitted, len(labels), *cross_fitted_nll(log_joints, labels, seed))


def fit_temperature(log_joints: Tensor, labels: Tensor) -> float:
    """The likeliest temperature under the prior.

    Args:
        log_joints: of held-out images, (N, C); any N, any scale.
        labels: int64 (N,).

    Returns:
        T, from e^-14 to e^14; above 1 where the classifier is too sure of itself, 1 for no images.

    Raises:
        ValueError: if a log-joint is not a finite number.
    """
    from scipy.optimize import minimize_scalar

    margins = _margins(log_joints, labels)

    def cost(log_temperature: float) -> float:
        return float(_nll(margins, np.exp(log_temperature)).sum()) + PRIOR_NATS * abs(log_temperature)

    nearest, width = min(SEARCHED, key=cost), SEARCHED[1] - SEARCHED[0]
    bounds = (nearest - width, nearest + width)
    found = minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x
    return float(f"{np.exp(min(0.0, found, key=cost)):.{DIGITS}g}")


def cross_fitted_nll(log_joints: Tensor, labels: Tensor, seed: int) -> tuple[float, float]:
    """What a fitted temperature is worth on images that it was not fitted to.

    Args:
        log_joints: of held-out images, (N, C).
        labels: int64 (N,).
        seed: of the folds.

    Returns:
        Mean negative log-likelihood in nats at T = 1, and of every fold at the T of the others.
    """
    fold, margins = folds_of(log_joints, labels, seed), _margins(log_joints, labels)
    at_one = cross_fitted = 0.0  # summed alike, so that they are equal where every fold gives T = 1
    for held_out in (fold == k for k in range(FOLDS)):
        temperature = fit_temperature(log_joints[~held_out], labels[~held_out])
        at_one += float(_nll(margins[held_out], 1.0).sum())
        cross_fitted += float(_nll(margins[held_out], temperature).sum())
    count = max(1, len(labels))
    return at_one / count, cross_fitted / count


def folds_of(log_joints: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Which of the folds an image is in, (N,): right and wrong images of every class spread evenly, by a seed."""
    wrong = log_joints.argmax(1) != labels
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    order = shuffled[(labels + log_joints.shape[1] * wrong)[shuffled].argsort(stable=True)]
    fold = torch.empty_like(labels)
    fold[order] = torch.arange(len(labels), device=labels.device) % FOLDS
    return fold


def calibrate(classifier: Classifier, held_out: Labelled, seed: int) -> None:
    """Give `classifier` the temperature and biases that suit images it has not learned from, and say why."""
    calibrate_by(classifier, log_joints_of(classifier, held_out.images), held_out.labels, seed)


def calibrate_by(
    classifier: Classifier, log_joints: Tensor, labels: Tensor, seed: int, *, by: str = "held out"
) -> None:
    """Give `classifier` the temperature and biases that suit log-joints, and say why.

    Args:
        classifier: what gets it.
        log_joints: (N, C), of images that neither it nor, where it is cross-fitted, the head that gave them has seen.
        labels: int64 (N,).
        seed: of the folds over which the temperature is judged.
        by: how these images were kept from the head, in words.
    """
    found = find_temperature(log_joints, labels, seed)
    why = found.why if by == "held out" else f"{found.why}; {by}"
    classifier.temperature = found.temperature
    fold = folds_of(log_joints, labels, seed)
    biases = find_biases(log_joints / found.temperature, labels, fold)
    classifier.class_biases = torch.tensor(biases.biases).to(classifier.class_biases)
    of_classes = {"why": biases.why, "helps": biases.helps, **biases._asdict(), "fitted": [*biases.fitted]}
    classifier.calibration = {"why": why, "held_out": found._asdict(), "class_biases": of_classes}


def _margins(log_joints: Tensor, labels: Tensor) -> Tensor:
    """By how much each class is above the image's own, (N, C), in float64."""
    scores = log_joints.detach().double()
    if not scores.isfinite().all():
        raise ValueError(
            f"log-joints must be finite, got {scores[~scores.isfinite()][0].item()}: the training has diverged"
        )
    return scores - scores.gather(1, labels[:, None])


def _nll(margins: Tensor, temperature: float) -> Tensor:
    """Negative log-likelihood of each image in nats, (N,)."""
    return (margins / temperature).logsumexp(1)
