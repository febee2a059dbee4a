"""What the training images say of heads that were fitted without them.

A head that the refit fits in closed form, or by EM, on features that nobody has learned from these images can be judged
on all of them: they are cut into folds, and each fold is scored by a head fitted on the others, principal components
included. That decides between LDA and MDA (`refit.head = "auto"`), by the likelihood of features and label together,
chooses the shrinkage (`refit.shrinkage = "cross-fit"`), by the NLL of LDA after a temperature, and gives the log-joints
to which the temperature is fitted (`calibration.temperature = "cross-fit"`), and how typical each image is of what was
fitted without it (`judge`).

Reference: Smyth 2000, Model Selection for Probabilistic Clustering Using Cross-Validated Likelihood, Statistics and
Computing 10.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.calibrate import cross_fitted_nll
from training.classifier import Classifier
from training.covariances import FloatArray
from training.heads import DiscriminantHead
from training.principal import Moments, Projection, Rows, moments_of, principal_components, project
from training.progress import say, track
from training.refit import (
    Labels,
    choose_components,
    dim_of,
    fit_classes,
    most_components,
    project_classes,
    rows_of,
)
from training.refit_spec import RefitSpec, Shrinkage
from training.typicality import Judged, Scale, score
from training.typicality_fit import Evidence, directions_of, evidence_of, fit_parts, measured

FOLDS = 5
SHRINKAGES: tuple[Shrinkage, ...] = (
    "ledoit-wolf",
    0.5,
    0.8,
    0.9,
)  # Ledoit and Wolf's share is often too small for few images


@dataclass(frozen=True)
class CrossFitted:
    """A head to fit, and what heads like it say of images that they were not fitted to.

    Attributes:
        spec: which head; never `auto`.
        log_joints: of the training images, float64 (N, C).
    """

    spec: RefitSpec
    log_joints: Tensor


def cross_fit(classifier: Classifier, spec: RefitSpec, images: Tensor | Rows, labels: Tensor, seed: int) -> CrossFitted:
    """Score every training image by a head that was fitted without it, and choose the head if `spec` leaves it open.

    Args:
        classifier: as `refit` takes it.
        spec: which features, which head.
        images: as `refit` takes them.
        labels: int64 (N,).
        seed: of the folds and of the EM's starts.

    Raises:
        ValueError: if a class has a single image.
    """
    rows, truth = rows_of(classifier, spec.features, images), labels.cpu().numpy()
    classes = classifier.architecture.classes
    folds = _Folds.of(rows, truth, classes, spec, seed)
    if spec.shrinkage == "cross-fit":
        spec = spec.model_copy(update={"shrinkage": _best_shrinkage(spec, folds, seed)})
    found = folds.judged(_candidates(spec, folds, seed), seed)
    likelihoods = [one.log_joints[torch.arange(len(truth)), labels.cpu()].mean().item() for one in found]
    best = int(np.argmax(likelihoods))
    if len(found) > 1:
        say(_in_words([one.spec for one in found], likelihoods, best))
    return found[best]


def judge(
    classifier: Classifier, found: CrossFitted, images: Tensor | Rows, labels: Tensor, seed: int
) -> tuple[Judged, Scale]:
    """How typical every training image is, and how probable its label, to what was fitted without it.

    Args:
        classifier: calibrated.
        found: what `cross_fit` found on these images, with this seed.
        images: as `refit` takes them.
        labels: int64 (N,).
        seed: of the folds.

    Returns:
        That, and the scale of the typicality, which is that of these images.
    """
    evidence, truth = evidence_of(classifier, images), labels.cpu().numpy()
    posterior = classifier.calibrated(found.log_joints).softmax(1)
    folds = _Folds.of(evidence.pooled, truth, classifier.architecture.classes, found.spec, seed)
    parts = folds.typicality_parts(evidence, in_features=directions_of(classifier) is not None)
    scale = Scale.of(parts)
    scores = score(torch.from_numpy(parts), posterior, folds.classes, scale)
    of_label = posterior.gather(1, labels.cpu()[:, None])[:, 0]
    return Judged(scores.float().numpy(), of_label.float().numpy()), scale


@dataclass(frozen=True)
class _Folds:
    """Rows with labels, cut into folds of which every one has each class in its share."""

    rows: Rows
    labels: Labels
    classes: int
    spec: RefitSpec
    fold: NDArray[np.int64]
    whole: Moments | None  # none where the features are taken as they are

    @classmethod
    def of(cls, rows: Rows, labels: Labels, classes: int, spec: RefitSpec, seed: int) -> "_Folds":
        fold = folds_of_classes(labels, classes, seed)
        return cls(rows, labels, classes, spec, fold, moments_of(rows) if spec.dim else None)

    def by_class(self) -> list[FloatArray]:
        """The features of all rows of each class."""
        return project_classes(self.rows, self.labels, self.classes, self._directions(self.whole))

    def judged(self, specs: list[RefitSpec], seed: int) -> list[CrossFitted]:
        """Score every row by heads fitted on the other folds."""
        results = [torch.empty(len(self.labels), self.classes, dtype=torch.float64) for _ in specs]
        folds = range(1 + int(self.fold.max()))
        for k in track(folds, f"refit: {len(folds)} folds"):
            own, others = np.flatnonzero(self.fold == k), np.flatnonzero(self.fold != k)
            held_out = self.rows.at(own)
            directions = self._without(held_out)
            by_class = project_classes(self.rows.at(others), self.labels[others], self.classes, directions)
            features = project(held_out, directions)
            for spec, result in zip(specs, results, strict=True):
                head = fit_classes(by_class, spec, seed, self.rows.dim)
                result[torch.from_numpy(own)] = log_joints_under(head, features)
        return [CrossFitted(*one) for one in zip(specs, results, strict=True)]

    def typicality_parts(self, evidence: Evidence, *, in_features: bool) -> FloatArray:
        """The parts (N, K) of the typicality of every row, by what is fitted on the other folds.

        Args:
            evidence: of the rows.
            in_features: whether features stand for the directions of a typicality's own.
        """
        found = []
        for k in track(range(1 + int(self.fold.max())), "refit: typicality"):
            own, others = np.flatnonzero(self.fold == k), np.flatnonzero(self.fold != k)
            directions = self._without(self.rows.at(own)) if in_features else None
            parts = fit_parts(evidence.at(others), self.labels[others], self.classes, directions)
            found.append(measured(parts, evidence.at(own), directions))
        return np.concatenate(found)[self.fold.argsort(kind="stable").argsort()]

    def _without(self, rows: Rows) -> Projection | None:
        """The principal components of all rows but these."""
        return self._directions(self.whole and self.whole - moments_of(rows))

    def _directions(self, moments: Moments | None) -> Projection | None:
        if moments is None:
            return None
        return principal_components(moments, dim_of(self.spec, moments.count, self.rows.dim))


def folds_of_classes(labels: Labels, classes: int, seed: int) -> NDArray[np.int64]:
    """Which fold an image is in, (N,): of five, or of as many as the smallest class has images; classes spread evenly.

    Raises:
        ValueError: if a class has a single image.
    """
    counts = np.bincount(labels, minlength=classes)
    if counts.min() < 2:
        raise ValueError(f"every class must have at least 2 training images to judge a head by, got {counts.min()}")
    fold, generator = np.empty(len(labels), np.int64), np.random.default_rng(seed)
    for c in range(classes):
        fold[generator.permutation(np.flatnonzero(labels == c))] = np.arange(counts[c]) % min(FOLDS, counts.min())
    return fold


@torch.no_grad()
def log_joints_under(head: DiscriminantHead, features: FloatArray) -> Tensor:
    """Log-joints of features (N, D), constant included, float64 (N, C)."""
    exact = head.double()
    parts = [exact(batch).log_joints for batch in torch.from_numpy(features).split(64)]
    return torch.cat(parts) + head.log_density_constant


def _best_shrinkage(spec: RefitSpec, folds: _Folds, seed: int) -> Shrinkage:
    """The shrinkage under which LDA's posterior, at a temperature, suits held-out images best."""
    judged = folds.judged([_lda(spec, shrinkage) for shrinkage in SHRINKAGES], seed)
    labels = torch.from_numpy(folds.labels)
    nll = [cross_fitted_nll(one.log_joints, labels, seed)[1] for one in judged]
    best = int(np.argmin(nll))
    named = ", ".join(f"{shrinkage} {value:.4f}" for shrinkage, value in zip(SHRINKAGES, nll, strict=True))
    say(f"held-out NLL by shrinkage: {named} nats; it is {SHRINKAGES[best]}")
    return SHRINKAGES[best]


def _lda(spec: RefitSpec, shrinkage: Shrinkage) -> RefitSpec:
    changes = {"head": "lda", "components": 1, "tied": False, "shrinkage": shrinkage}
    return RefitSpec.model_validate(spec.model_dump() | changes)


def _candidates(spec: RefitSpec, folds: _Folds, seed: int) -> list[RefitSpec]:
    """The heads that `spec` leaves open, each with a number of components: LDA first."""
    if spec.head == "lda":
        return [spec]
    lda = _lda(spec, spec.shrinkage)
    components = spec.components
    if components == "bic":
        by_class = folds.by_class()
        fewest = min(map(len, by_class))
        least = 2 if spec.head == "auto" else 1
        if most_components(spec, fewest) < least:
            return [lda]
        components = choose_components(by_class, spec, seed, folds.rows.dim, least)
    mda = spec.model_copy(update={"head": "mda", "components": components})
    return [lda, mda] if spec.head == "auto" else [mda]


def _in_words(specs: list[RefitSpec], likelihoods: list[float], best: int) -> str:
    named = [
        f"{spec.head} {likelihood:.2f}"
        if spec.head == "lda"
        else f"mda with {spec.components} components {likelihood:.2f}"
        for spec, likelihood in zip(specs, likelihoods, strict=True)
    ]
    return f"held-out log-likelihood an image: {' nats, '.join(named)} nats; the head is {specs[best].head}"
