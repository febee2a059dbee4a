"""Rows of features and their principal components, a batch at a time: no more than their covariance is ever held.

rows = rows_of_tensor(features)                          # or Rows of a memory-mapped file
projection = principal_components(moments_of(rows), 256)   # weights (256, P) and offset (256,)
features = project(rows, projection)                     # (N, 256)
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]

AT_ONCE = 4096  # rows


@dataclass(frozen=True)
class Rows:
    """A selection of the rows of an array, which may be mapped from a file.

    Attributes:
        array: (M, P).
        positions: of the selected ones, int64 (N,).
    """

    array: NDArray[np.floating]
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def dim(self) -> int:
        """P."""
        return int(self.array.shape[1])

    def at(self, positions: NDArray[np.int64]) -> "Rows":
        """A selection of these rows."""
        return replace(self, positions=self.positions[positions])

    def batches(self) -> Iterator[FloatArray]:
        """Float64 (n, P), a batch at a time; what was read of a file is not kept in memory."""
        for start in range(0, len(self), AT_ONCE):
            yield self.array[self.positions[start : start + AT_ONCE]].astype(np.float64)
            if isinstance(self.array, np.memmap) and self.array.mode == "r":
                self.array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def rows_of_tensor(features: Tensor) -> Rows:
    """All rows of features (N, ...)."""
    return Rows(features.flatten(1).cpu().numpy(), np.arange(len(features)))


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

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(self.count - other.count, self.total - other.total, self.products - other.products)


def moments_of(rows: Rows) -> Moments:
    """Count, sum and products."""
    total, products = np.zeros(rows.dim), np.zeros((rows.dim, rows.dim))
    for batch in rows.batches():
        total += batch.sum(0)
        products += batch.T @ batch
    return Moments(len(rows), total, products)


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


def project(rows: Rows, projection: Projection | None) -> FloatArray:
    """Rows to (N, D); as they are without a projection."""
    if projection is None:
        return np.concatenate(list(rows.batches()))
    return np.concatenate([batch @ projection.weights.T + projection.offset for batch in rows.batches()])


def as_linear(projection: Projection) -> torch.nn.Linear:
    """The same as a layer in float32."""
    layer = torch.nn.Linear(projection.weights.shape[1], len(projection.offset))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(projection.weights))
        layer.bias.copy_(torch.from_numpy(projection.offset))
    return layer
