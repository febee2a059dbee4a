"""Heads: features z (N, D) to log-joints (N, C).

The generative heads give every class c a mixture of K Gaussians over the features and score

    component log-joints  log p(c) + log p(k|c) + log N(z; mu_ck, Sigma_ck)   (N, C, K)
    log-joints            logsumexp over k                                     (N, C)

LDA is the case K = 1 with one covariance that all classes share; MDA has a covariance per component. The constant
-(D/2) log 2 pi is left out (`log_density_constant` restores it): softmax ignores it, and the penalty of the DNLL loss
is scaled without it.

References: Tezekbayev et al., Deep Linear Discriminant Analysis Revisited, arXiv 2601.01619; Hastie & Tibshirani 1996,
Discriminant Analysis by Gaussian Mixtures, JRSS-B 58.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Covariance = Literal["spherical", "diagonal", "full"]

SEPARATION = 6.0  # distance of two class means at the start, in standard deviations


class Scores(NamedTuple):
    """What a head says of a batch.

    Attributes:
        features: z, (N, D).
        log_joints: (N, C); the logits or margins of a linear head.
        component_log_joints: (N, C, K); None for a linear head.
    """

    features: Tensor
    log_joints: Tensor
    component_log_joints: Tensor | None


def gaussian_log_density(features: Tensor, means: Tensor, whitening: Tensor, half_log_det: Tensor) -> Tensor:
    """Log-density of M Gaussians, less the constant -(D/2) log 2 pi.

    Args:
        features: (N, D).
        means: (M, D).
        whitening: what turns z - mu into a standard normal: factors (M or 1, D or 1), or matrices (M or 1, D, D).
        half_log_det: half the log-determinant of each covariance, (M,) or (1,).

    Returns:
        Nats, (N, M).
    """
    difference = features[:, None, :] - means  # (N, M, D)
    if whitening.ndim == 2:
        white = difference * whitening
    else:
        white = (difference.transpose(0, 1) @ whitening.mT).transpose(0, 1)
    return -0.5 * white.square().sum(-1) - half_log_det


class Gaussians(nn.Module):
    """M Gaussians over R^D with trainable covariances, all starting from the unit one.

    Args:
        means: (M, D).
        covariance: `spherical` (variance s^2), `diagonal`, or `full` (Cholesky factor with a positive diagonal).
        shared: one covariance for all instead of one each.
        trainable_means: False keeps the means where they are.
    """

    def __init__(self, means: Tensor, covariance: Covariance, *, shared: bool, trainable_means: bool = True):
        super().__init__()
        count, dim = means.shape
        count = 1 if shared else count
        self.means = nn.Parameter(means.clone(), requires_grad=trainable_means)
        self.covariance = covariance
        if covariance == "full":
            self.log_scale = nn.Parameter(torch.zeros(count, dim))  # log of the Cholesky factor's diagonal
            self.lower = nn.Parameter(torch.zeros(count, dim, dim))  # only what is below the diagonal counts
        else:
            self.log_variance = nn.Parameter(torch.zeros(count, dim if covariance == "diagonal" else 1))

    def cholesky(self) -> Tensor:
        """Lower-triangular L with Sigma = L L^T, (M or 1, D, D)."""
        dim = self.means.shape[1]
        if self.covariance == "full":
            return self.lower.tril(-1) + torch.diag_embed(self.log_scale.exp())
        return torch.diag_embed((0.5 * self.log_variance).exp().expand(-1, dim))

    def whitening(self) -> tuple[Tensor, Tensor]:
        """The `whitening` and `half_log_det` of `gaussian_log_density`."""
        dim = self.means.shape[1]
        if self.covariance == "full":
            eye = torch.eye(dim, dtype=self.lower.dtype, device=self.lower.device)
            inverse = torch.linalg.solve_triangular(self.cholesky(), eye, upper=False)
            return inverse, self.log_scale.sum(-1)
        return (-0.5 * self.log_variance).exp(), 0.5 * self.log_variance.expand(-1, dim).sum(-1)

    @torch.no_grad()
    def set_covariance(self, covariance: Tensor) -> None:
        """Take covariances: (M or 1,) spherical variances, (M or 1, D) diagonals, or (M or 1, D, D) matrices."""
        if self.covariance == "full":
            factor = torch.linalg.cholesky(covariance)
            self.log_scale.copy_(factor.diagonal(dim1=-2, dim2=-1).log())
            self.lower.copy_(factor.tril(-1))
        else:
            self.log_variance.copy_(covariance.log().reshape(self.log_variance.shape))

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) to log-densities (N, M), less the constant."""
        return gaussian_log_density(features, self.means, *self.whitening())


class DiscriminantHead(nn.Module):
    """A Gaussian mixture a class; build one with `lda_head` or `mda_head`.

    Args:
        kind: `lda` or `mda`, for the record.
        means: (C, K, D).
        covariance: the type of every covariance.
        shared: one covariance for all classes and components.
        trainable_means: False keeps the means where they are.
    """

    def __init__(self, kind: str, means: Tensor, covariance: Covariance, *, shared: bool, trainable_means: bool = True):
        super().__init__()
        self.kind = kind
        self.classes, self.components, self.dim = means.shape
        self.gaussians = Gaussians(means.flatten(0, 1), covariance, shared=shared, trainable_means=trainable_means)
        self.prior_logits = nn.Parameter(torch.zeros(self.classes))
        self.weight_logits = nn.Parameter(torch.zeros(self.classes, self.components))

    @property
    def log_density_constant(self) -> float:
        """-(D/2) log 2 pi, which turns the log-joints into true log-densities."""
        return -0.5 * self.dim * math.log(2 * math.pi)

    def log_weights(self) -> Tensor:
        """Sum of log p(c) and log p(k|c), (C, K)."""
        return self.prior_logits.log_softmax(0)[:, None] + self.weight_logits.log_softmax(1)

    def forward(self, features: Tensor) -> Scores:
        """Score features (N, D)."""
        densities = self.gaussians(features).unflatten(1, (self.classes, self.components))
        component_log_joints = self.log_weights() + densities
        return Scores(features, component_log_joints.logsumexp(2), component_log_joints)


class LinearHead(nn.Module):
    """A weight vector and a bias a class: logits (`softmax`) or margins (`svm`)."""

    def __init__(self, kind: str, classes: int, dim: int):
        super().__init__()
        self.kind, self.classes, self.dim, self.components = kind, classes, dim, 1
        self.linear = nn.Linear(dim, classes)

    def forward(self, features: Tensor) -> Scores:
        """Score features (N, D)."""
        return Scores(features, self.linear(features), None)


Head = DiscriminantHead | LinearHead


def lda_head(
    classes: int, dim: int, covariance: Covariance = "spherical", *, simplex: bool = False
) -> DiscriminantHead:
    """One Gaussian a class, one covariance for all; `simplex` fixes the means at the vertices of a regular simplex."""
    means = _class_means(classes, dim, simplex=simplex)
    return DiscriminantHead("lda", means[:, None, :], covariance, shared=True, trainable_means=not simplex)


def mda_head(
    classes: int, dim: int, components: int, covariance: Covariance = "spherical", *, simplex: bool = False
) -> DiscriminantHead:
    """K Gaussians a class, each with its own covariance.

    The component means start at the class mean plus noise of a tenth of its scale, and stay there if `simplex`.
    """
    means = _class_means(classes, dim, simplex=simplex)[:, None, :].repeat(1, components, 1)
    means = means + 0.1 * _mean_scale(dim) * torch.randn(means.shape)
    return DiscriminantHead("mda", means, covariance, shared=False, trainable_means=not simplex)


def simplex_vertices(classes: int, dim: int, distance: float = SEPARATION) -> Tensor:
    """Vertices of a regular simplex around the origin, zero-padded to D coordinates, (C, D).

    Raises:
        ValueError: if dim < classes - 1, where no such simplex exists.
    """
    if dim < classes - 1:
        raise ValueError(f"dim must be at least classes - 1 = {classes - 1} for a simplex, got {dim}")
    centred = torch.eye(classes, dtype=torch.float64) - 1 / classes  # C points in a space of C - 1 dimensions
    _, _, basis = torch.linalg.svd(centred)
    vertices = centred @ basis[: classes - 1].T * (distance / math.sqrt(2))
    return nn.functional.pad(vertices, (0, dim - classes + 1)).to(torch.get_default_dtype())


def _mean_scale(dim: int) -> float:
    """Standard deviation per coordinate that puts two random means about SEPARATION apart."""
    return SEPARATION / math.sqrt(2 * dim)


def _class_means(classes: int, dim: int, *, simplex: bool) -> Tensor:
    return simplex_vertices(classes, dim) if simplex else _mean_scale(dim) * torch.randn(classes, dim)
