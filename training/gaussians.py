"""Gaussians over features: their log-densities, and covariances that are trained or fitted."""

from typing import Literal

import torch
from torch import Tensor, nn

Covariance = Literal["spherical", "diagonal", "full"]


def gaussian_log_density(
    features: Tensor, means: Tensor, whitening: Tensor, half_log_det: Tensor, *, shared: bool = False
) -> Tensor:
    """Log-density of M Gaussians, less the constant -(D/2) log 2 pi.

    Args:
        features: (N, D).
        means: (M, D).
        whitening: what turns z - mu into a standard normal: factors (M or 1, D or 1), or matrices (M or 1, D, D).
        half_log_det: half the log-determinant of each covariance, (M,) or (1,).
        shared: whether there is one covariance for all, which is then M times less to compute.

    Returns:
        Nats, (N, M).
    """
    if whitening.ndim == 3 and shared:
        white = (features @ whitening[0].mT)[:, None, :] - means @ whitening[0].mT
        return -0.5 * white.square().sum(-1) - half_log_det
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
        self.covariance, self.shared = covariance, shared
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
        return gaussian_log_density(features, self.means, *self.whitening(), shared=self.shared)
