"""Covariances of features within their classes, shrunk where there are few images.

The within-class scatter of N features is singular in more than N dimensions and too wide-spread in nearly as many.
Shrinkage moves it towards a multiple of the identity by the share that Ledoit and Wolf estimate from the features
themselves, which goes to zero as N grows.

Reference: Ledoit & Wolf 2004, A Well-Conditioned Estimator for Large-Dimensional Covariance Matrices, J. Multivariate
Analysis 88.
"""

import numpy as np
from numpy.typing import NDArray

from training.refit_spec import RefitSpec

FloatArray = NDArray[np.float64]


def pooled_covariance(by_class: list[FloatArray], spec: RefitSpec, ridge: float, pooled: int) -> FloatArray:
    """Within-class covariance over all classes, of the kind and with the shrinkage that `spec` names.

    Args:
        by_class: features (N_c, D) of each class.
        spec: covariance and shrinkage, which is not `cross-fit`.
        ridge: what is added to every variance.
        pooled: P, as for `of_kind`.

    Returns:
        (1,) spherical, (1, D) diagonal or (1, D, D) full.
    """
    count, dim = sum(map(len, by_class)), by_class[0].shape[1]
    scatter, fourth = np.zeros((dim, dim)), 0.0
    for points in by_class:
        centred = points - points.mean(0)
        scatter += centred.T @ centred
        fourth += float(np.square(np.square(centred).sum(1)).sum())
    return of_kind(scatter / count, fourth, count, spec, ridge, pooled)


def of_kind(
    scatter: FloatArray, fourth_moment: float, count: int, spec: RefitSpec, ridge: float, pooled: int
) -> FloatArray:
    """A shared covariance from the mean of the deviations' outer products.

    Of principal components, the covariance of all features is shrunk and then seen in these directions: the identity
    has the mean variance over all, not that over the directions in which the images happen to vary.

    Args:
        scatter: that mean, (D, D).
        fourth_moment: the sum of the deviations' lengths to the fourth power.
        count: N, of the deviations.
        spec: covariance and shrinkage, which is not `cross-fit`.
        ridge: what is added to every variance.
        pooled: P, the number of features that these are the principal components of; D if they are themselves.

    Returns:
        (1,) spherical, (1, D) diagonal or (1, D, D) full.
    """
    is_estimated = spec.shrinkage == "ledoit-wolf"
    share = ledoit_wolf(scatter, fourth_moment, count, pooled) if is_estimated else float(spec.shrinkage)
    variance = float(np.trace(scatter)) / pooled
    full: FloatArray = (1 - share) * scatter + (share * variance + ridge) * np.eye(len(scatter))
    if spec.covariance == "full":
        return full[None]
    diagonal = np.diag(full)
    return diagonal[None] if spec.covariance == "diagonal" else diagonal.mean(keepdims=True)


def ledoit_wolf(scatter: FloatArray, fourth_moment: float, count: int, pooled: int) -> float:
    """The share of the identity that brings a covariance nearest to the true one, 0 to 1 (Ledoit & Wolf 2004, eq. 14).

    Args:
        scatter: the mean of the deviations' outer products, (D, D).
        fourth_moment: the sum of the deviations' lengths to the fourth power.
        count: N, of the deviations.
        pooled: P, as for `of_kind`.
    """
    squared = float(np.square(scatter).sum())
    from_identity = squared - float(np.trace(scatter)) ** 2 / pooled
    noise = (fourth_moment / count - squared) / count
    return min(max(noise, 0.0), from_identity) / from_identity if from_identity > 0 else 0.0
