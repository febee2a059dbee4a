"""Out-of-distribution detection: which score of one network tells images of its own kind from strangers.

    figures = ood_figures(run, Sources(root), torch.device("cpu"))

The scores, higher for more familiar images:

- log_density: log p(z) of a generative head, in nats.
- max_probability: the largest class probability, calibrated as it is served.
- energy: logsumexp of linear logits at temperature one. For LDA they are its discriminant functions without the
  quadratic term that all classes share (linear.py); with that term the logsumexp would be log_density again. A head
  with a covariance per component has no linear logits: its energy is that of the log-joints at the temperature that it
  is served with, logsumexp(delta / T), which only at T = 1 is log_density.
- relative_mahalanobis: the log-likelihood ratio, but for constants, of the nearest class's Gaussian, of one full
  covariance for all classes, and one Gaussian for everything, both fitted on features of training images.

Each is measured on both test splits by the area under the ROC curve and by the share of strangers that are accepted at
the threshold that accepts 95 % of the network's own kind.

References: Hendrycks & Gimpel 2017, A Baseline for Detecting Misclassified and Out-of-Distribution Examples, ICLR; Liu
et al. 2020, Energy-based Out-of-distribution Detection, NeurIPS; Ren et al. 2021, A Simple Fix to Mahalanobis Distance
for Improving Near-OOD Detection, arXiv 2106.09022.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.analysis.evidence import (
    SAMPLE,
    Answers,
    Evidence,
    FloatArray,
    Labels,
    answers_of,
    gather,
    log_joints_of_features,
)
from training.analysis.linear import linear_readout
from training.classifier import Classifier
from training.data import DataError, Dataset, Sources
from training.datasets import DATASETS, load_dataset
from training.image_files import in_memory
from training.intervals import auroc_interval
from training.recipe import DataSpec
from training.run import Run

SCORE_NAMES = {
    "log_density": "log-density",
    "max_probability": "max probability",
    "energy": "energy",
    "relative_mahalanobis": "relative Mahalanobis",
}
ACCEPTED = 0.95  # of the network's own kind
RIDGE = 1e-6  # of the features' mean variance

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


def ood_figures(run: Run, sources: Sources, device: torch.device, sample: int = SAMPLE) -> dict[str, Any]:
    """AUROC and FPR at 95 % TPR of every score of a run's network, as plain values; see `ood_of`.

    Raises:
        DataError: if the run's data set has no strangers, or they are not there.
        RunError: if the run is not finished or its images have changed.
    """
    strangers_of(run.recipe.data.name)
    return ood_of(gather(run, sources, device, sample), sources, device)


def ood_of(evidence: Evidence, sources: Sources, device: torch.device) -> dict[str, Any]:
    """The same, from answers that are there already.

    Returns:
        known and strangers, the data sets; known_images and stranger_images; scores, by name auroc and fpr_at_95_tpr;
        omitted, by name why a score is not there.
    """
    images, labels = stranger_images(evidence.dataset, sources)
    strangers = answers_of(evidence.classifier, images, labels, evidence.dataset.input, device)
    fitted = fit_relative_mahalanobis(evidence.train.features, evidence.train.labels)
    known, unknown = (scores_of(evidence, answers, fitted) for answers in (evidence.test, strangers))
    return {
        "known": evidence.dataset.name,
        "strangers": strangers_of(evidence.dataset.name),
        "known_images": len(evidence.test.labels),
        "stranger_images": len(labels),
        "scores": {name: separation(known[name], unknown[name]) for name in known},
        "omitted": omitted(evidence),
    }


def strangers_of(dataset: str) -> str:
    """The data set of another kind with images of the same shape.

    Raises:
        DataError: if none is known.
    """
    strangers = {name: entry.strangers for name, entry in DATASETS.items() if entry.strangers is not None}
    if dataset not in strangers:
        raise DataError(
            f"data set must be one of {', '.join(strangers)} to have strangers of the same shape, got {dataset}"
        )
    return strangers[dataset]


def stranger_images(dataset: Dataset, sources: Sources) -> tuple[Tensor, Tensor]:
    """Test images and labels of the stranger to `dataset`.

    Raises:
        DataError: if there is none, it is not there, or its images have another shape.
    """
    name = strangers_of(dataset.name)
    strangers = load_dataset(DataSpec(name=name), sources)
    if strangers.images.shape[1:] != dataset.images.shape[1:]:
        ours, theirs = ("x".join(map(str, data.images.shape[1:])) for data in (dataset, strangers))
        raise DataError(f"strangers must have images of {ours} as {dataset.name} has, got {theirs} in {name}")
    test = torch.arange(strangers.test_start or 0, len(strangers.labels))
    return in_memory(strangers.images[test]), strangers.labels[test]


def scores_of(evidence: Evidence, answers: Answers, fitted: RelativeMahalanobis) -> FamiliarityScores:
    """Every score that the network's head has."""
    scores = {"max_probability": answers.outputs["posterior"].max(1).astype(np.float64)}
    if "log_density" in answers.outputs:
        scores = {"log_density": answers.outputs["log_density"].astype(np.float64)} | scores
    scores["energy"] = energy(_logits(evidence.classifier, answers.features))
    return scores | {"relative_mahalanobis": relative_mahalanobis(answers.features, fitted)}


def omitted(evidence: Evidence) -> dict[str, str]:
    """Why a score is not there, by its name."""
    head = evidence.classifier.head
    return {} if "log_density" in head.outputs else {"log_density": f"a {head.kind} head has no density"}


def _logits(classifier: Classifier, features: FloatArray) -> FloatArray:
    """What the energy is of, (N, C), for features (N, D)."""
    if (readout := linear_readout(classifier.head)) is None:
        return log_joints_of_features(classifier, features) / classifier.temperature
    weights, bias = readout
    return features @ weights.T + bias


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


def separation(known: FloatArray, strangers: FloatArray) -> dict[str, Any]:
    """How well a score, higher for the known, tells known (N,) from strangers (M,).

    Returns:
        auroc, its 95 % interval over images of both kinds (auroc_interval), and fpr_at_95_tpr.

    Raises:
        ValueError: if a score is no finite number.
    """
    from sklearn.metrics import roc_auc_score

    scores = np.concatenate([known, strangers])
    if not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite, got {scores[~np.isfinite(scores)][0]}")
    truth = np.repeat([1, 0], [len(known), len(strangers)])
    return {
        "auroc": round(float(roc_auc_score(truth, scores)), 6),
        "auroc_interval": auroc_interval(known, strangers),
        "fpr_at_95_tpr": round(false_positive_rate(known, strangers), 6),
    }


def false_positive_rate(known: FloatArray, strangers: FloatArray, accepted: float = ACCEPTED) -> float:
    """Share of strangers at or above the highest threshold that at least `accepted` of the known reach."""
    needed = math.ceil(accepted * len(known) - 1e-9)
    threshold = np.sort(known)[len(known) - needed]
    return float((strangers >= threshold).mean())


def _whitening(centred: FloatArray, ridge: float) -> FloatArray:
    """W with W' W the inverse covariance of centred features (N, D); (D, D)."""
    covariance = centred.T @ centred / len(centred) + ridge * np.eye(centred.shape[1])
    whitening: FloatArray = np.linalg.inv(np.linalg.cholesky(covariance))
    return whitening
