"""Pooled features and their principal components, a batch at a time: no more than their covariance is ever held.

moments = moments_of(rows)
projection = principal_components(moments, 256)   # weights (256, P) and offset (256,)
features = project(rows, projection)              # (N, 256)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]

AT_ONCE = 4096  # rows


class Projection(NamedTuple):
    """Features (N, P) to weights @ feature + offset: weights (D, P), offset (D,)."""

    weights: FloatArray
    offset: FloatArray


@dataclass(frozen=True)
class Moments:
    """What is known of rows: how many, their sum (P,) and the sum of their outer products (P, P)."""

    count: int
    total: FloatArray
    products: FloatArray

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.products + other.products)

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(self.count - other.count, self.total - other.total, self.products - other.products)


def batches_of(rows: Tensor) -> Iterator[FloatArray]:
    """Rows (N, ...) as float64 (n, P), a batch at a time."""
    for batch in rows.split(AT_ONCE):
        yield batch.flatten(1).double().cpu().numpy()


def moments_by_fold(rows: Tensor, fold: NDArray[np.int64], folds: int) -> list[Moments]:
    """The moments of each fold's rows.

    Args:
        rows: (N, ...).
        fold: from 0, of each row, (N,).
        folds: how many there are.
    """
    dim, done = rows.shape[1:].numel(), 0
    found = [Moments(0, np.zeros(dim), np.zeros((dim, dim))) for _ in range(folds)]
    for batch in batches_of(rows):
        of_batch = fold[done : done + len(batch)]
        done += len(batch)
        for k in np.unique(of_batch).tolist():
            points = batch[of_batch == k]
            found[k] += Moments(len(points), points.sum(0), points.T @ points)
    return found


def principal_components(moments: Moments, dim: int) -> Projection:
    """The `dim` directions of the largest variance, of unit length, each with its largest entry above zero.

    References: scikit-learn's PCA with svd_solver="covariance_eigh", of which this is the part after the sums.
    """
    mean = moments.total / moments.count
    covariance = moments.products / moments.count - np.outer(mean, mean)
    weights = np.linalg.eigh(covariance)[1].T[::-1][:dim]
    largest = np.abs(weights).argmax(1)
    weights = weights * np.sign(weights[np.arange(len(weights)), largest])[:, None]
    return Projection(np.ascontiguousarray(weights), -weights @ mean)


def project(rows: Tensor, projection: Projection) -> FloatArray:
    """Rows (N, ...) to (N, D)."""
    return np.concatenate([batch @ projection.weights.T + projection.offset for batch in batches_of(rows)])


def as_linear(projection: Projection) -> torch.nn.Linear:
    """The same as a layer in float32."""
    layer = torch.nn.Linear(projection.weights.shape[1], len(projection.offset))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(projection.weights))
        layer.bias.copy_(torch.from_numpy(projection.offset))
    return layer
