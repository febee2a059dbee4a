"""Scores of one network that may tell images of its own kind from strangers, higher for more familiar ones.

    fitted = fit_scores(evidence)
    scores_of(evidence, evidence.test, fitted)      # by name, (N,)

- log_density: log p(z) of a generative head, in nats.
- max_probability: the largest class probability, calibrated as it is served (MSP).
- energy: logsumexp of linear logits at temperature one. For LDA they are its discriminant functions without the
  quadratic term that all classes share (linear.py); with that term the logsumexp would be log_density again. A head
  with a covariance per component has no linear logits: its energy is that of the log-joints at the temperature that it
  is served with, logsumexp(delta / T), which only at T = 1 is log_density.
- relative_mahalanobis: the log-likelihood ratio, but for constants, of the nearest class's Gaussian, of one full
  covariance for all classes, and one Gaussian for everything, both fitted on features of training images.
- vim: the energy less alpha times the norm of the pooled features' part outside their principal subspace, alpha such
  that on training images both are as large. The subspace is taken about the point where all logits are zero, or about
  the mean where there are no linear logits.
- knn: how near the fiftieth nearest training image is, in pooled features of length one.
- typicality_score: what the graph answers, where it does.

References: Hendrycks & Gimpel 2017, A Baseline for Detecting Misclassified and Out-of-Distribution Examples, ICLR; Liu
et al. 2020, Energy-based Out-of-distribution Detection, NeurIPS; Ren et al. 2021, A Simple Fix to Mahalanobis Distance
for Improving Near-OOD Detection, arXiv 2106.09022; Wang et al. 2022, ViM: Out-Of-Distribution with Virtual-logit
Matching, CVPR; Sun et al. 2022, Out-of-Distribution Detection with Deep Nearest Neighbors, ICML.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from training.analysis.evidence import Answers, Evidence, FloatArray, Labels, log_joints_of_features
from training.analysis.linear import linear_readout
from training.classifier import Classifier

SCORE_NAMES = {
    "log_density": "log-density",
    "max_probability": "max probability",
    "energy": "energy",
    "relative_mahalanobis": "relative Mahalanobis",
    "vim": "ViM",
    "knn": "KNN",
    "typicality_score": "typicality",
}
RIDGE = 1e-6  # of the features' mean variance
NEIGHBOUR = 50
AT_ONCE = 1_000  # images whose distances to all training images are in memory

FamiliarityScores = dict[str, FloatArray]  # by name, (N,)


class RelativeMahalanobis(NamedTuple):
    """Gaussians over the features.

    Attributes:
        means: of the classes, (C, D).
        whitening: of the covariance that they share, (D, D).
        background: mean of all features, (D,).
        background_whitening: of their covariance, (D, D).
    """

    means: FloatArray
    whitening: FloatArray
    background: FloatArray
    background_whitening: FloatArray


class Vim(NamedTuple):
    """What is outside the principal subspace of the pooled features.

    Attributes:
        origin: (P,).
        minor: an orthonormal basis of what is outside, (P, R).
        alpha: logits a unit of length there.
    """

    origin: FloatArray
    minor: FloatArray
    alpha: float


class FittedScores(NamedTuple):
    """What scores know of the training images; `neighbours` are their pooled features of length one, (n, P)."""

    relative_mahalanobis: RelativeMahalanobis
    vim: Vim
    neighbours: NDArray[np.float32]


def fit_scores(evidence: Evidence) -> FittedScores:
    """Fit every score to the sample of training images."""
    train, logits = evidence.train, logits_of(evidence.classifier, evidence.train.features)
    return FittedScores(
        fit_relative_mahalanobis(train.features, train.labels),
        fit_vim(train.pooled, logits, zero_of(evidence.classifier)),
        normalised(train.pooled),
    )


def scores_of(evidence: Evidence, answers: Answers, fitted: FittedScores) -> FamiliarityScores:
    """Every score that the network has."""
    logits = logits_of(evidence.classifier, answers.features)
    scores = {
        **{name: answers.outputs[name].astype(np.float64) for name in ("log_density",) if name in answers.outputs},
        "max_probability": answers.outputs["posterior"].max(1).astype(np.float64),
        "energy": energy(logits),
        "relative_mahalanobis": relative_mahalanobis(answers.features, fitted.relative_mahalanobis),
        "vim": energy(logits) - fitted.vim.alpha * residual_norm(answers.pooled, fitted.vim),
        "knn": knn(answers.pooled, fitted.neighbours),
    }
    if "typicality_score" in answers.outputs:
        scores["typicality_score"] = answers.outputs["typicality_score"].astype(np.float64)
    return scores


def omitted(evidence: Evidence) -> dict[str, str]:
    """Why a score is not there, by its name."""
    head, reasons = evidence.classifier.head, {}
    if "log_density" not in evidence.test.outputs:
        reasons["log_density"] = f"a {head.kind} head has no density"
    if "typicality_score" not in evidence.test.outputs:
        reasons["typicality_score"] = "the recipe holds no images out"
    return reasons


def logits_of(classifier: Classifier, features: FloatArray) -> FloatArray:
    """What the energy is of, (N, C), for features (N, D)."""
    if (readout := linear_readout(classifier.head)) is None:
        return classifier.calibrated(torch.from_numpy(log_joints_of_features(classifier, features))).numpy()
    weights, bias = readout
    return features @ weights.T + bias


@torch.no_grad()
def zero_of(classifier: Classifier) -> FloatArray | None:
    """The pooled features (P,) nearest to 0 at which all linear logits are zero, or nearly; None without logits."""
    if (readout := linear_readout(classifier.head)) is None:
        return None
    (weights, bias), projection = readout, classifier.encoder.projection
    if isinstance(projection, torch.nn.Linear):
        bias = bias + weights @ projection.bias.double().numpy()
        weights = weights @ projection.weight.double().numpy()
    zero: FloatArray = -np.linalg.pinv(weights) @ bias
    return zero


def energy(logits: FloatArray) -> FloatArray:
    """Negative free energy: logsumexp of logits (N, C); (N,)."""
    result: FloatArray = np.logaddexp.reduce(logits, axis=1)
    return result


def fit_relative_mahalanobis(features: FloatArray, labels: Labels) -> RelativeMahalanobis:
    """Gaussians of features (N, D) of training images with labels (N,)."""
    known = np.unique(labels)
    means = np.stack([features[labels == label].mean(0) for label in known])
    within = features - means[np.searchsorted(known, labels)]
    background = features.mean(0)
    ridge = RIDGE * float(features.var(0).mean())
    return RelativeMahalanobis(means, _whitening(within, ridge), background, _whitening(features - background, ridge))


def relative_mahalanobis(features: FloatArray, fitted: RelativeMahalanobis) -> FloatArray:
    """Squared distance to the background less that to the nearest class, of features (N, D); (N,)."""
    white, means = features @ fitted.whitening.T, fitted.means @ fitted.whitening.T
    nearest = np.min([np.square(white - mean).sum(1) for mean in means], axis=0)
    to_background = np.square((features - fitted.background) @ fitted.background_whitening.T).sum(1)
    difference: FloatArray = to_background - nearest
    return difference


def fit_vim(pooled: FloatArray, logits: FloatArray, origin: FloatArray | None) -> Vim:
    """The minor directions of pooled features (N, P) of training images, and alpha by their logits (N, C).

    Args:
        pooled: (N, P).
        logits: (N, C).
        origin: (P,); the mean if None.
    """
    origin = pooled.mean(0) if origin is None else origin
    centred = pooled - origin
    _, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    minor = vectors[:, : pooled.shape[1] - principal_dim(pooled.shape[1])]
    norm = float(np.linalg.norm(centred @ minor, axis=1).sum())
    # Log-joints may be negative; what is outside makes an image no more familiar for that.
    size = abs(float(logits.max(1).sum()))
    return Vim(origin, minor, size / norm if norm else 0.0)


def principal_dim(pooled: int) -> int:
    """How many of P directions are principal, as the authors of ViM choose it."""
    if pooled >= 2048:
        return 1000
    return 512 if pooled >= 768 else pooled // 2


def residual_norm(pooled: FloatArray, fitted: Vim) -> FloatArray:
    """Length of what is outside the principal subspace of pooled features (N, P); (N,)."""
    norm: FloatArray = np.linalg.norm((pooled - fitted.origin) @ fitted.minor, axis=1)
    return norm


def normalised(pooled: FloatArray) -> NDArray[np.float32]:
    """Pooled features (N, P) of length one; zeros stay zeros."""
    length = np.linalg.norm(pooled, axis=1, keepdims=True)
    return (pooled / np.where(length > 0, length, 1)).astype(np.float32)


def knn(pooled: FloatArray, neighbours: NDArray[np.float32], neighbour: int = NEIGHBOUR) -> FloatArray:
    """Negative distance of pooled features (N, P) to their so-manieth nearest of `neighbours` (n, P); (N,).

    Where there are fewer of them, it is that to the farthest.
    """
    place = min(neighbour, len(neighbours)) - 1
    parts = np.array_split(normalised(pooled), max(1, len(pooled) // AT_ONCE))
    lengths = np.square(neighbours).sum(1)
    found = []
    for part in parts:
        squared = np.square(part).sum(1, keepdims=True) + lengths - 2 * part @ neighbours.T
        found.append(np.partition(squared, place, axis=1)[:, place])
    distances: FloatArray = np.sqrt(np.concatenate(found).astype(np.float64).clip(min=0))
    return -distances


def _whitening(centred: FloatArray, ridge: float) -> FloatArray:
    """W with W' W the inverse covariance of centred features (N, D); (D, D)."""
    covariance = centred.T @ centred / len(centred) + ridge * np.eye(centred.shape[1])
    whitening: FloatArray = np.linalg.inv(np.linalg.cholesky(covariance))
    return whitening
