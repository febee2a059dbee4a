"""The second stage: the head fitted anew on the frozen features of the training images.

Components trained by gradient alone collapse into one; components fitted by EM, one Gaussian mixture a class, become
kinds of images. LDA: class means and the pooled within-class covariance in closed form. The projection may be refitted
too: principal components of the pooled features take the place of the encoder's last layer.

Reference: Hastie & Tibshirani 1996, Discriminant Analysis by Gaussian Mixtures, JRSS-B 58.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.classifier import Classifier
from training.covariances import FloatArray, pooled_covariance
from training.encoders import Encoder
from training.heads import DiscriminantHead, build_head
from training.mixtures import Mixtures, bic, fit_mixtures
from training.principal import as_linear, batches_of, moments_by_fold, principal_components, project
from training.progress import track
from training.recipe import HeadSpec
from training.refit_spec import RefitSpec

Labels = NDArray[np.int64]

IMAGES_A_COMPONENT = 5  # at least, where the number of components is chosen


def refit(classifier: Classifier, spec: RefitSpec, images: Tensor, labels: Tensor, seed: int) -> Classifier:
    """A classifier that shares the trunk and has a head fitted on the features of `images`.

    Args:
        classifier: a trained one; it is not changed.
        spec: which features, which head; it is not `auto` (training/cross_fit.py).
        images: uint8 (N, channels, H, W), not augmented.
        labels: int64 (N,).
        seed: of the EM's starts.

    Raises:
        ValueError: if a class has fewer images than components, or `spec.dim` exceeds the features or the images.
    """
    features, projection = _features(classifier, spec, images)
    before = classifier.architecture
    pooled = projection.in_features if isinstance(projection, nn.Linear) and spec.dim else None
    head = fit_head(features, labels.cpu().numpy(), before.classes, spec, seed, pooled)
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
    """Fit LDA or MDA; priors are the class shares.

    Args:
        features: (N, D).
        labels: (N,).
        classes: C.
        spec: which head; it is not `auto`.
        seed: of the EM's starts.
        pooled: P, if the features are principal components of so many.
    """
    pooled = pooled or features.shape[1]
    by_class = split_by_class(features, labels, classes)
    _require_images(spec, min(map(len, by_class)))
    if spec.head == "lda":
        return _fit_lda(by_class, spec, pooled)
    components = choose_components(by_class, spec, seed, pooled) if spec.components == "bic" else spec.components
    mixtures = fit_mixtures(by_class, components, spec, seed, ridge_of(features, spec), pooled)
    head = build_head(
        HeadSpec(kind="mda", components=components, covariance=spec.covariance, tied=spec.tied),
        classes,
        features.shape[1],
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
    ridge = ridge_of(np.concatenate(by_class), spec)
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


def split_by_class(features: FloatArray, labels: Labels, classes: int) -> list[FloatArray]:
    """Features (N, D) with labels (N,) to (N_c, D) of each class."""
    return [features[labels == c] for c in range(classes)]


def ridge_of(features: FloatArray, spec: RefitSpec) -> float:
    """What is added to every variance of features (N, D)."""
    return spec.ridge * float(features.var(0).mean())


def _head_spec(spec: RefitSpec, head: DiscriminantHead) -> HeadSpec:
    tied = spec.tied and head.kind == "mda"
    return HeadSpec(kind=head.kind, components=head.components, covariance=spec.covariance, tied=tied)


def _fit_lda(by_class: list[FloatArray], spec: RefitSpec, pooled: int) -> DiscriminantHead:
    dim = by_class[0].shape[1]
    head = build_head(HeadSpec(kind="lda", covariance=spec.covariance), len(by_class), dim)
    means = np.stack([points.mean(0) for points in by_class])[:, None]
    covariance = pooled_covariance(by_class, spec, ridge_of(np.concatenate(by_class), spec), pooled)
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


def _features(classifier: Classifier, spec: RefitSpec, images: Tensor) -> tuple[FloatArray, nn.Module]:
    """Features (N, D) in float64 and the projection that makes them."""
    rows = rows_of(classifier, spec, images)
    if spec.dim is None:
        return np.concatenate(list(batches_of(rows))), classifier.encoder.projection
    dim = dim_of(spec, len(rows), rows.shape[1:].numel())
    moments = moments_by_fold(rows, np.zeros(len(rows), np.int64), 1)[0]
    projection = principal_components(moments, dim)
    return project(rows, projection), as_linear(projection)


@torch.no_grad()
def rows_of(classifier: Classifier, spec: RefitSpec, images: Tensor) -> Tensor:
    """The features (N, P) that the refit begins with; (N, P, 1, 1) where `images` are those features already."""
    classifier.eval()
    encoder = classifier.encoder
    part = encoder if spec.features == "output" else encoder.trunk
    if images.is_floating_point() and (part is encoder.trunk or isinstance(encoder.projection, nn.Identity)):
        return images
    batches = track(images.split(512), "refit: features")
    return torch.cat([part(classifier.normalise(batch)) for batch in batches])


def _require_images(spec: RefitSpec, fewest: int) -> None:
    least = 1 if spec.components == "bic" else spec.components
    if fewest <= least:
        raise ValueError(f"refit.components must be less than the images of every class ({fewest}), got {least}")
