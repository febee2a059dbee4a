"""Gaussian mixtures, one a class, fitted by EM to features.

Either every component has a covariance of its own, and the classes are fitted one by one (scikit-learn), or all
components of all classes share one (`tied`), as in the mixture discriminant analysis of Hastie and Tibshirani. Then a
component needs few images, for only its mean is its own, and the classes are fitted together.

Reference: Hastie & Tibshirani 1996, Discriminant Analysis by Gaussian Mixtures, JRSS-B 58.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.covariances import FloatArray, of_kind
from training.progress import track
from training.refit_spec import RefitSpec

SKLEARN_COVARIANCE = {"spherical": "spherical", "diagonal": "diag", "full": "full"}
MOST_STEPS = 500
TOLERANCE = 1e-3  # nats an image, in the mean; scikit-learn's
START_DIRECTIONS, START_TRIES = 8, 3  # of the k-means that EM starts from
LEAST_WEIGHT = 1e-6  # images; a component that no image belongs to keeps a mean


class Mixtures(NamedTuple):
    """A Gaussian mixture a class.

    Attributes:
        means: (C, K, D).
        weights: p(k|c), (C, K).
        covariances: (C * K, ...), or (1, ...) if tied: variances, diagonals (D,) or matrices (D, D).
        tied: whether all share one covariance.
    """

    means: FloatArray
    weights: FloatArray
    covariances: FloatArray
    tied: bool


def fit_mixtures(
    by_class: list[FloatArray], components: int, spec: RefitSpec, seed: int, ridge: float, pooled: int
) -> Mixtures:
    """Fit K components a class to each class's features.

    Args:
        by_class: features (N_c, D) of each class.
        components: K.
        spec: covariance, tied, shrinkage and restarts.
        seed: of the EM's starts.
        ridge: what is added to every variance.
        pooled: P, as for `covariances.of_kind`.
    """
    if spec.tied:
        return _fit_tied(by_class, components, spec, seed, ridge, pooled)
    fitted = [_own_mixture(points, components, spec, seed, ridge) for points in track(by_class, "refit")]
    return Mixtures(
        np.stack([one.means_ for one in fitted]),
        np.stack([one.weights_ for one in fitted]),
        np.concatenate([one.covariances_ for one in fitted]),
        tied=False,
    )


def log_densities(mixtures: Mixtures, by_class: list[FloatArray]) -> list[FloatArray]:
    """Log p(k|c) + log N(z; mu_ck, Sigma_ck) of each class's features under its own components, in nats.

    Args:
        mixtures: C of them.
        by_class: features (N_c, D) of each class.

    Returns:
        (N_c, K) for each class.
    """
    _, components, dim = mixtures.means.shape
    whitening, half_log_det = _whitening(mixtures.covariances, dim)
    constant = 0.5 * dim * np.log(2 * np.pi)
    densities = []
    for c, points in enumerate(by_class):
        log_density = np.empty((len(points), components))
        white = None if len(whitening) > 1 else points @ whitening[0].T
        for k in range(components):
            own = 0 if white is not None else c * components + k
            moved = (points @ whitening[own].T if white is None else white) - whitening[own] @ mixtures.means[c, k]
            log_density[:, k] = -0.5 * np.square(moved).sum(1) - half_log_det[own]
        densities.append(np.log(mixtures.weights[c]) + log_density - constant)
    return densities


def bic(mixtures: Mixtures, by_class: list[FloatArray]) -> float:
    """The Bayesian information criterion in nats, summed over the classes.

    A class's means and weights count the logarithm of its own number of images; a tied covariance counts for nothing,
    for it is the same whatever the number of components.
    """
    _, components, dim = mixtures.means.shape
    own = 0 if mixtures.tied else {1: 1, 2: dim, 3: dim * (dim + 1) // 2}[mixtures.covariances.ndim]
    free = components * (1 + dim + own) - 1
    fits = (float(np.logaddexp.reduce(one, axis=1).sum()) for one in log_densities(mixtures, by_class))
    return float(sum(-2 * fit + free * np.log(len(points)) for fit, points in zip(fits, by_class, strict=True)))


def _own_mixture(points: FloatArray, components: int, spec: RefitSpec, seed: int, ridge: float) -> Any:
    """A mixture whose components have covariances of their own."""
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    mixture = GaussianMixture(
        components,
        covariance_type=SKLEARN_COVARIANCE[spec.covariance],
        init_params="k-means++",
        n_init=spec.restarts,
        max_iter=MOST_STEPS,
        reg_covar=ridge,
        random_state=seed,
    )
    with threadpool_limits(1):  # the matrices are small: threads only wait for each other
        return mixture.fit(points)


def _fit_tied(
    by_class: list[FloatArray], components: int, spec: RefitSpec, seed: int, ridge: float, pooled: int
) -> Mixtures:
    """The likeliest of `spec.restarts` mixtures that share a covariance."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # most steps are over small matrices: threads only wait for each other
        scatter = np.sum([points.T @ points for points in by_class], axis=0)
        seeds = range(seed, seed + (spec.restarts if components > 1 else 1))
        starts = (_starts(by_class, components, one) for one in seeds)
        found = [
            _em(by_class, start, scatter, spec, ridge, pooled) for start in track(starts, "refit", total=len(seeds))
        ]
    return max(found, key=lambda one: one[1])[0]


def _starts(by_class: list[FloatArray], components: int, seed: int) -> list[FloatArray]:
    """Responsibilities (N_c, K) of each class to start from: k-means in the directions in which the class varies most.

    In all directions, whitened, k-means would set single images apart, and EM would end at a lower likelihood.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    starts = []
    for points in by_class:
        seen = PCA(min(START_DIRECTIONS, *points.shape), svd_solver="covariance_eigh").fit_transform(points)
        group = KMeans(components, n_init=START_TRIES, random_state=seed).fit_predict(seen)
        starts.append(np.eye(components)[group])
    return starts


def _em(
    by_class: list[FloatArray],
    start: list[FloatArray],
    scatter: FloatArray,
    spec: RefitSpec,
    ridge: float,
    pooled: int,
) -> tuple[Mixtures, float]:
    """Mixtures and their mean log-likelihood in nats, when a step changes that no more."""
    responsibilities, likelihood, count = start, -np.inf, sum(map(len, by_class))
    for _ in range(MOST_STEPS):
        mixtures = _maximised(by_class, responsibilities, scatter, spec, ridge, pooled)
        joints = log_densities(mixtures, by_class)
        totals = [np.logaddexp.reduce(joint, axis=1, keepdims=True) for joint in joints]
        responsibilities = [np.exp(joint - total) for joint, total in zip(joints, totals, strict=True)]
        before, likelihood = likelihood, sum(float(total.sum()) for total in totals) / count
        if abs(likelihood - before) < TOLERANCE:
            break
    return mixtures, likelihood


def _maximised(
    by_class: list[FloatArray],
    responsibilities: list[FloatArray],
    scatter: FloatArray,
    spec: RefitSpec,
    ridge: float,
    pooled: int,
) -> Mixtures:
    """The mixtures that suit responsibilities (N_c, K) best; `scatter` is the sum of all outer products, (D, D)."""
    pairs = list(zip(by_class, responsibilities, strict=True))
    sizes = np.stack([shares.sum(0) for _, shares in pairs]) + LEAST_WEIGHT
    means = np.stack([shares.T @ points for points, shares in pairs]) / sizes[:, :, None]
    flat = means.reshape(-1, means.shape[2])
    within = scatter - (flat * sizes.reshape(-1, 1)).T @ flat
    fourth = sum(
        float((shares * np.square(_squared_distances(points, means[c]))).sum())
        for c, (points, shares) in enumerate(pairs)
    )
    count = sum(map(len, by_class))
    covariance = of_kind(within / count, fourth, count, spec, ridge, pooled)
    return Mixtures(means, sizes / sizes.sum(1, keepdims=True), covariance, tied=True)


def _squared_distances(points: FloatArray, means: FloatArray) -> FloatArray:
    """Of points (N, D) to means (K, D), (N, K)."""
    squares: FloatArray = np.stack([np.square(points - mean).sum(1) for mean in means], axis=1)
    return squares


def _whitening(covariances: FloatArray, dim: int) -> tuple[FloatArray, NDArray[np.float64]]:
    """For each covariance the matrix (D, D) that makes it the unit one, and half its log-determinant."""
    from scipy.linalg import solve_triangular

    if covariances.ndim < 3:
        diagonals = covariances if covariances.ndim == 2 else np.repeat(covariances[:, None], dim, axis=1)
        return np.stack([np.diag(row**-0.5) for row in diagonals]), 0.5 * np.log(diagonals).sum(1)
    factors = np.linalg.cholesky(covariances)
    inverses = np.stack([solve_triangular(factor, np.eye(dim), lower=True) for factor in factors])
    return inverses, np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(1)
