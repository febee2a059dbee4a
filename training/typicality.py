"""How typical an image is: one score for all models, in the exported graph, from the pooled features.

    typicality = fit_typicality(rows, labels, classes, encoder.projection)
    typicality(pooled, features, posterior)        # (N,), higher is more typical

The features that the loss has shaped, and their density, no longer know what a stranger looks like; the pooled features
before the projection still do, once their lengths are put aside. With u = z / |z| the score is

    - min_c (u - mu_c)' S^-1 (u - mu_c)

with the class means and the covariance within classes of the training images, shrunk towards the identity. Of many
features it is known in their principal directions alone, which the encoder's projection has already where the head was
refitted to them; what lies beyond these directions is taken to have one variance.

The score has no unit that means anything; a server compares it with those of held-out images (serving/held_out.py).

References: Lee et al. 2018, A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
Attacks, NeurIPS; Mueller & Hein 2025, Mahalanobis++: Improving OOD Detection via Feature Normalization, ICML; Ledoit &
Wolf 2004 for the shrinkage.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from training.covariances import FloatArray, ledoit_wolf
from training.principal import Rows

MOST_DIRECTIONS = 256  # of a typicality's own
LEAST_SHRINKAGE = 0.01
LEAST_LENGTH = 1e-6  # of pooled features that are scaled to length: zeros stay zeros


class Typicality(nn.Module):
    """Pooled features (N, P), features (N, D) and posterior (N, C) to scores (N,).

    Args:
        mean: of the pooled features at length one, (P,).
        directions: orthonormal ones, (R, P); or None, where the features are what those of length sqrt(P) are in R of
            them, centred.
        whitening: of what is seen in the directions, (R, R).
        class_means: whitened, (C, R).
        beyond: one over the variance in every other direction, scalar; 0 if there are none.
    """

    mean: Tensor
    directions: Tensor | None
    whitening: Tensor
    class_means: Tensor
    beyond: Tensor

    def __init__(self, mean: Tensor, directions: Tensor | None, whitening: Tensor, class_means: Tensor, beyond: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("directions", directions)
        self.register_buffer("whitening", whitening)
        self.register_buffer("class_means", class_means)
        self.register_buffer("beyond", beyond)

    def forward(self, pooled: Tensor, features: Tensor, posterior: Tensor) -> Tensor:
        """Score images."""
        unit = normalize(pooled, dim=1, eps=LEAST_LENGTH) - self.mean
        seen = features / len(self.mean) ** 0.5 if self.directions is None else unit @ self.directions.mT  # (N, R)
        squared = ((seen @ self.whitening.mT)[:, None] - self.class_means).square().sum(2).amin(1)
        rest = (unit.square().sum(1) - seen.square().sum(1)).clamp(min=0)
        return -(squared + self.beyond * rest)


class Judged(NamedTuple):
    """What heads and typicalities made of training images that they were fitted without.

    Attributes:
        typicality_scores: float32 (N,).
        label_probabilities: of each image's own label, after the temperature, float32 (N,).
    """

    typicality_scores: NDArray[np.float32]
    label_probabilities: NDArray[np.float32]


class _Statistics(NamedTuple):
    """Of pooled features at length one: their mean (P,), class means less it (C, P), and the covariance within (P, P).

    `shrinkage` is the share of the identity in the covariance.
    """

    mean: FloatArray
    class_means: FloatArray
    covariance: FloatArray
    shrinkage: float


@torch.no_grad()
def fit_typicality(
    rows: Rows, labels: NDArray[np.int64], classes: int, directions: FloatArray | None = None
) -> Typicality:
    """Fit it to the pooled features of training images.

    Args:
        rows: pooled features (N, P).
        labels: (N,).
        classes: C.
        directions: those that the features are seen in, (D, P), if the pooled features have one length; else it has
            principal directions of its own.
    """
    found = _statistics(rows, labels, classes)
    seen = _principal(found.covariance) if directions is None else directions
    variance = float(np.trace(found.covariance)) / rows.dim
    inside = (1 - found.shrinkage) * seen @ found.covariance @ seen.T
    inside += found.shrinkage * variance * np.eye(len(seen))
    whitening = np.linalg.inv(np.linalg.cholesky(inside))
    outside = rows.dim - len(seen)
    rest = (1 - found.shrinkage) * (np.trace(found.covariance) - np.trace(seen @ found.covariance @ seen.T))
    beyond = outside / (rest + found.shrinkage * variance * outside) if outside else 0.0
    class_means = found.class_means @ seen.T @ whitening.T
    mean, seen_in, *others = (
        torch.tensor(part, dtype=torch.float32) for part in (found.mean, seen, whitening, class_means, beyond)
    )
    return Typicality(mean, seen_in if directions is None else None, *others)


def _statistics(rows: Rows, labels: NDArray[np.int64], classes: int) -> _Statistics:
    counts = np.bincount(labels, minlength=classes)
    totals, products = np.zeros((classes, rows.dim)), np.zeros((rows.dim, rows.dim))
    for unit, truth in _batches(rows, labels):
        np.add.at(totals, truth, unit)
        products += unit.T @ unit
    means = totals / counts[:, None]
    covariance = (products - means.T @ totals) / len(rows)
    fourth = sum(
        float(np.square(np.square(unit - means[truth]).sum(1)).sum()) for unit, truth in _batches(rows, labels)
    )
    shrinkage = max(LEAST_SHRINKAGE, ledoit_wolf(covariance, fourth, len(rows), rows.dim))
    mean = totals.sum(0) / len(rows)
    return _Statistics(mean, means - mean, covariance, shrinkage)


def _batches(rows: Rows, labels: NDArray[np.int64]) -> Iterator[tuple[FloatArray, NDArray[np.int64]]]:
    """Pooled features at length one, with their labels."""
    start = 0
    for batch in rows.batches():
        length = np.linalg.norm(batch, axis=1, keepdims=True)
        yield batch / np.maximum(length, LEAST_LENGTH), labels[start : start + len(batch)]
        start += len(batch)


def _principal(covariance: FloatArray) -> FloatArray:
    """The directions of the largest variance, at most MOST_DIRECTIONS, (R, P)."""
    directions: FloatArray = np.linalg.eigh(covariance)[1].T[::-1][:MOST_DIRECTIONS]
    return np.ascontiguousarray(directions)
