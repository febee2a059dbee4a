"""The second stage: the head fitted anew on the frozen features of the training images.

Components trained by gradient alone collapse into one; components fitted by EM, one Gaussian mixture a class, become
kinds of images. LDA: class means and the pooled within-class covariance in closed form. The projection may be refitted
too: principal components of the pooled features take the place of the encoder's last layer.

Reference: Hastie & Tibshirani 1996, Discriminant Analysis by Gaussian Mixtures, JRSS-B 58.
"""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.classifier import Classifier
from training.covariances import FloatArray, pooled_covariance
from training.encoders import Encoder
from training.heads import DiscriminantHead, build_head
from training.mixtures import Mixtures, bic, fit_mixtures
from training.principal import Projection, Rows, as_linear, moments_of, principal_components, project, rows_of_tensor
from training.progress import track
from training.recipe import HeadSpec
from training.refit_spec import RefitSpec

Labels = NDArray[np.int64]

IMAGES_A_COMPONENT = 5  # at least, where the number of components is chosen


def refit(classifier: Classifier, spec: RefitSpec, images: Tensor | Rows, labels: Tensor, seed: int) -> Classifier:
    """A classifier that shares the trunk and has a head fitted on the features of `images`.

    Args:
        classifier: a trained one; it is not changed.
        spec: which features, which head; nothing of it is left open (training/cross_fit.py).
        images: uint8 (N, channels, H, W), not augmented; or the trunk's features of them.
        labels: int64 (N,).
        seed: of the EM's starts.

    Raises:
        ValueError: if a class has fewer images than components, or `spec.dim` exceeds the features or the images.
    """
    before, rows = classifier.architecture, rows_of(classifier, spec.features, images)
    directions = None if spec.dim is None else principal_components(moments_of(rows), dim_of(spec, len(rows), rows.dim))
    projection = classifier.encoder.projection if directions is None else as_linear(directions)
    head = fit_classes(project_classes(rows, labels.cpu().numpy(), before.classes, directions), spec, seed, rows.dim)
    kind = "linear" if before.encoder.kind == "none" and spec.dim else before.encoder.kind
    dim = projection.out_features if spec.dim and isinstance(projection, nn.Linear) else before.encoder.dim
    architecture = replace(
        before, encoder=before.encoder.model_copy(update={"kind": kind, "dim": dim}), head=_head_spec(spec, head)
    )
    refitted = Classifier(architecture, Encoder(classifier.encoder.trunk, projection), head)
    refitted.mean.copy_(classifier.mean)
    refitted.std.copy_(classifier.std)
    return refitted.to(classifier.mean.device).eval()


def check_limits(spec: RefitSpec, labels: Tensor, classes: int, pooled: int) -> None:
    """Refuse before the training what `refit` would refuse after it.

    Args:
        spec: which features, which head.
        labels: of the training images, int64 (N,).
        classes: C.
        pooled: the number of pooled features.

    Raises:
        ValueError: if a class has fewer images than components, or `spec.dim` exceeds the features or the images.
    """
    _require_images(spec, int(labels.bincount(minlength=classes).min()))
    if spec.dim is not None:
        dim_of(spec, len(labels), pooled)


def fit_head(
    features: FloatArray, labels: Labels, classes: int, spec: RefitSpec, seed: int, pooled: int | None = None
) -> DiscriminantHead:
    """Fit LDA or MDA to features (N, D) with labels (N,); the rest as for `fit_classes`."""
    by_class = [features[labels == c] for c in range(classes)]
    return fit_classes(by_class, spec, seed, pooled or features.shape[1])


def fit_classes(by_class: list[FloatArray], spec: RefitSpec, seed: int, pooled: int) -> DiscriminantHead:
    """Fit LDA or MDA; priors are the class shares.

    Args:
        by_class: features (N_c, D) of each class.
        spec: which head; it is not `auto`.
        seed: of the EM's starts.
        pooled: P, if the features are principal components of so many, else D.
    """
    _require_images(spec, min(map(len, by_class)))
    if spec.head == "lda":
        return _fit_lda(by_class, spec, pooled)
    components = choose_components(by_class, spec, seed, pooled) if spec.components == "bic" else spec.components
    mixtures = fit_mixtures(by_class, components, spec, seed, ridge_of(by_class, spec), pooled)
    head = build_head(
        HeadSpec(kind="mda", components=components, covariance=spec.covariance, tied=spec.tied),
        len(by_class),
        by_class[0].shape[1],
    )
    return _filled(head, by_class, mixtures)


def choose_components(by_class: list[FloatArray], spec: RefitSpec, seed: int, pooled: int, least: int = 1) -> int:
    """The number of components, the same for every class, with the least Bayesian information criterion in sum.

    Args:
        by_class: features (N_c, D) of each class.
        spec: the most that are tried, and how they are fitted.
        seed: of the EM's starts.
        pooled: P, as for `covariances.of_kind`.
        least: of the numbers that are tried.
    """
    ridge = ridge_of(by_class, spec)
    candidates = range(least, 1 + most_components(spec, min(map(len, by_class))))
    criteria = {
        k: bic(fit_mixtures(by_class, k, spec, seed, ridge, pooled), by_class) for k in track(candidates, "refit: BIC")
    }
    return min(criteria, key=criteria.__getitem__)


def most_components(spec: RefitSpec, fewest: int) -> int:
    """How many components are tried where the smallest class has `fewest` images."""
    return max(1, min(spec.max_components, fewest // IMAGES_A_COMPONENT if spec.tied else fewest - 1))


def dim_of(spec: RefitSpec, images: int, pooled: int) -> int:
    """How many principal components there are: `spec.dim`, or where covariances are shrunk as many as the images have.

    Raises:
        ValueError: if `spec.dim` exceeds the features, or the images whose covariance is not shrunk.
    """
    assert spec.dim is not None
    if spec.dim <= min(images, pooled):
        return spec.dim
    if spec.dim <= pooled and spec.shrinkage != 0:
        return max(1, images - 1)
    raise ValueError(
        f"refit.dim must be at most the number of pooled features ({pooled}) and of training images ({images}), "
        f"got {spec.dim}"
    )


def project_classes(rows: Rows, labels: Labels, classes: int, directions: Projection | None) -> list[FloatArray]:
    """Rows with labels (N,) to features (N_c, D) of each class."""
    return [project(rows.at(np.flatnonzero(labels == c)), directions) for c in range(classes)]


def ridge_of(by_class: list[FloatArray], spec: RefitSpec) -> float:
    """What is added to every variance: a share of the mean variance over all images."""
    count, dim = sum(map(len, by_class)), by_class[0].shape[1]
    mean = np.sum([points.sum(0) for points in by_class], axis=0) / count
    squares = sum(float(np.einsum("nd,nd->", moved, moved)) for moved in (points - mean for points in by_class))
    return float(spec.ridge * squares / count / dim)


def _head_spec(spec: RefitSpec, head: DiscriminantHead) -> HeadSpec:
    tied = spec.tied and head.kind == "mda"
    return HeadSpec(kind=head.kind, components=head.components, covariance=spec.covariance, tied=tied)


def _fit_lda(by_class: list[FloatArray], spec: RefitSpec, pooled: int) -> DiscriminantHead:
    dim = by_class[0].shape[1]
    head = build_head(HeadSpec(kind="lda", covariance=spec.covariance), len(by_class), dim)
    means = np.stack([points.mean(0) for points in by_class])[:, None]
    covariance = pooled_covariance(by_class, spec, ridge_of(by_class, spec), pooled)
    return _filled(head, by_class, Mixtures(means, np.ones((len(by_class), 1)), covariance, tied=True))


@torch.no_grad()
def _filled(head: Any, by_class: list[FloatArray], mixtures: Mixtures) -> DiscriminantHead:
    """Put mixtures into a head; priors from the class sizes."""
    filled: DiscriminantHead = head.double()
    filled.gaussians.means.copy_(torch.from_numpy(mixtures.means).flatten(0, 1))
    filled.gaussians.set_covariance(torch.tensor(mixtures.covariances))
    filled.prior_logits.copy_(torch.tensor([len(points) for points in by_class], dtype=torch.float64).log())
    filled.weight_logits.copy_(torch.from_numpy(mixtures.weights).log())
    return filled.float()


@torch.no_grad()
def rows_of(classifier: Classifier, kind: Literal["output", "pooled"], images: Tensor | Rows) -> Rows:
    """The features that the refit begins with; where `images` are the trunk's features already, those."""
    classifier.eval()
    encoder = classifier.encoder
    if isinstance(images, Rows):
        return images
    part = encoder if kind == "output" else encoder.trunk
    batches = track(images.split(512), "refit: features")
    return rows_of_tensor(torch.cat([part(classifier.normalise(batch)) for batch in batches]))


def _require_images(spec: RefitSpec, fewest: int) -> None:
    least = 1 if spec.components == "bic" else spec.components
    if fewest <= least:
        raise ValueError(f"refit.components must be less than the images of every class ({fewest}), got {least}")
