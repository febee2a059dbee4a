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
from training.encoders import Encoder
from training.gaussians import Covariance
from training.heads import DiscriminantHead, build_head
from training.progress import track
from training.recipe import HeadSpec, RefitSpec

SKLEARN_COVARIANCE = {"spherical": "spherical", "diagonal": "diag", "full": "full"}


def refit(classifier: Classifier, spec: RefitSpec, images: Tensor, labels: Tensor, seed: int) -> Classifier:
    """A classifier that shares the trunk and has a head fitted on the features of `images`.

    Args:
        classifier: a trained one; it is not changed.
        spec: which features, which head.
        images: uint8 (N, channels, H, W), not augmented.
        labels: int64 (N,).
        seed: of the EM's starts.

    Raises:
        ValueError: if a class has fewer images than components, or `spec.dim` exceeds the features or the images.
    """
    features, projection = _features(classifier, spec, images)
    before = classifier.architecture
    head = fit_head(features, labels.cpu().numpy(), before.classes, spec, seed)
    kind = "linear" if before.encoder.kind == "none" and spec.dim else before.encoder.kind
    architecture = replace(
        before,
        encoder=before.encoder.model_copy(update={"kind": kind, "dim": spec.dim or before.encoder.dim}),
        head=HeadSpec(kind=spec.head, components=head.components, covariance=spec.covariance),
    )
    refitted = Classifier(architecture, Encoder(classifier.encoder.trunk, projection), head)
    refitted.mean.copy_(classifier.mean)
    refitted.std.copy_(classifier.std)
    return refitted.to(images.device).eval()


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
        _require_dim(spec.dim, len(labels), pooled)


def fit_head(
    features: NDArray[np.float64], labels: NDArray[np.int64], classes: int, spec: RefitSpec, seed: int
) -> DiscriminantHead:
    """Fit LDA or MDA to features (N, D) with labels (N,); priors are the class shares."""
    by_class = [features[labels == c] for c in range(classes)]
    _require_images(spec, min(map(len, by_class)))
    if spec.head == "lda":
        return _fit_lda(by_class, spec)
    components = choose_components(by_class, spec, seed) if spec.components == "bic" else spec.components
    ridge = _ridge(features, spec)
    mixtures = [_mixture(points, components, spec, seed, ridge) for points in track(by_class, "refit")]
    head = build_head(
        HeadSpec(kind="mda", components=components, covariance=spec.covariance), classes, features.shape[1]
    )
    covariances = np.concatenate([m.covariances_ for m in mixtures])
    means, weights = np.stack([m.means_ for m in mixtures]), np.stack([m.weights_ for m in mixtures])
    return _filled(head, by_class, means, weights, covariances)


def choose_components(by_class: list[NDArray[np.float64]], spec: RefitSpec, seed: int) -> int:
    """The number of components, the same for every class, with the least Bayesian information criterion in sum."""
    ridge = _ridge(np.concatenate(by_class), spec)
    candidates = range(1, min(spec.max_components + 1, *map(len, by_class)))
    bic = {
        k: sum(float(_mixture(points, k, spec, seed, ridge).bic(points)) for points in by_class)
        for k in track(candidates, "refit: BIC")
    }
    return min(bic, key=bic.__getitem__)


def pooled_covariance(by_class: list[NDArray[np.float64]], covariance: Covariance, ridge: float) -> NDArray[np.float64]:
    """Within-class covariance over all classes: (1,) spherical, (1, D) diagonal or (1, D, D) full."""
    centred = np.concatenate([points - points.mean(0) for points in by_class])
    full: NDArray[np.float64] = centred.T @ centred / len(centred) + ridge * np.eye(centred.shape[1])
    if covariance == "full":
        return full[None]
    diagonal = np.diag(full)
    return diagonal[None] if covariance == "diagonal" else diagonal.mean(keepdims=True)


def _fit_lda(by_class: list[NDArray[np.float64]], spec: RefitSpec) -> DiscriminantHead:
    dim = by_class[0].shape[1]
    head = build_head(HeadSpec(kind="lda", covariance=spec.covariance), len(by_class), dim)
    means = np.stack([points.mean(0) for points in by_class])[:, None]
    ridge = _ridge(np.concatenate(by_class), spec)
    covariance = pooled_covariance(by_class, spec.covariance, ridge)
    return _filled(head, by_class, means, np.ones((len(by_class), 1)), covariance)


@torch.no_grad()
def _filled(
    head: Any,
    by_class: list[NDArray[np.float64]],
    means: NDArray[np.float64],
    weights: NDArray[np.float64],
    covariances: NDArray[np.float64],
) -> DiscriminantHead:
    """Put means (C, K, D), weights (C, K) and covariances into a head; priors from the class sizes."""
    filled: DiscriminantHead = head.double()
    filled.gaussians.means.copy_(torch.from_numpy(means).flatten(0, 1))
    filled.gaussians.set_covariance(torch.tensor(covariances))
    filled.prior_logits.copy_(torch.tensor([len(points) for points in by_class], dtype=torch.float64).log())
    filled.weight_logits.copy_(torch.from_numpy(weights).log())
    return filled.float()


def _mixture(points: NDArray[np.float64], components: int, spec: RefitSpec, seed: int, ridge: float) -> Any:
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    mixture = GaussianMixture(
        components,
        covariance_type=SKLEARN_COVARIANCE[spec.covariance],
        init_params="k-means++",
        n_init=spec.restarts,
        max_iter=500,
        reg_covar=ridge,
        random_state=seed,
    )
    with threadpool_limits(1):  # the matrices are small: threads only wait for each other
        return mixture.fit(points)


def _ridge(features: NDArray[np.float64], spec: RefitSpec) -> float:
    return spec.ridge * float(features.var(0).mean())


@torch.no_grad()
def _features(classifier: Classifier, spec: RefitSpec, images: Tensor) -> tuple[NDArray[np.float64], nn.Module]:
    """Features (N, D) in float64 and the projection that makes them."""
    classifier.eval()
    encoder = classifier.encoder
    part = encoder if spec.features == "output" else encoder.trunk
    batches = track(images.split(512), "refit: features")
    raw = torch.cat([part(classifier.normalise(batch)) for batch in batches]).double().cpu().numpy()
    if spec.dim is None:
        return raw, encoder.projection
    components, offset = _principal_components(raw, spec.dim)
    projection = nn.Linear(raw.shape[1], spec.dim)
    projection.weight.copy_(torch.from_numpy(components))
    projection.bias.copy_(torch.from_numpy(offset))
    return raw @ components.T + offset, projection


def _principal_components(raw: NDArray[np.float64], dim: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (dim, P) and offset (dim,) of the projection onto the first principal components."""
    from sklearn.decomposition import PCA

    _require_dim(dim, *raw.shape)
    pca = PCA(dim, svd_solver="covariance_eigh").fit(raw)
    return pca.components_, -pca.components_ @ pca.mean_


def _require_images(spec: RefitSpec, fewest: int) -> None:
    least = 1 if spec.components == "bic" else spec.components
    if fewest <= least:
        raise ValueError(f"refit.components must be less than the images of every class ({fewest}), got {least}")


def _require_dim(dim: int, images: int, pooled: int) -> None:
    if dim > min(images, pooled):
        raise ValueError(
            f"refit.dim must be at most the number of pooled features ({pooled}) and of training images ({images}), "
            f"got {dim}"
        )
