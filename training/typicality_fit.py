"""A typicality fitted: its parts to training images, their scale to images that the weights have not seen.

    evidence = evidence_of(classifier, images)                     # or of a backbone's features, which are streamed
    parts = fit_parts(evidence, labels, classes, directions_of(classifier))
    typicality = Typicality(parts, Scale.of(measured(parts, calibration)))

One Gaussian a class, all with one covariance, is fitted to features in their principal directions: in all of them if
they are few, else in the first ones. The covariance within classes is shrunk by the share of Ledoit and Wolf. Where it
is white, the eigenvectors of the covariance between classes are the new basis: the first C - 1 hold all class means,
and the others tell no classes.

Where a backbone's many features have one length, and its projection is of their principal directions, these are the
projection's, and what it makes of the images is all that is measured; a graph has no second copy of them then.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.classifier import Classifier
from training.covariances import FloatArray, ledoit_wolf
from training.principal import Projection, Rows, rows_of_tensor
from training.progress import track
from training.typicality import Parts, Seen, unit

ALL_UP_TO = 320  # features: their own principal directions are all taken
MOST_DIRECTIONS = 192  # of more features
LEAST_SHRINKAGE = 1e-4
LEAST_VARIANCE = 1e-12  # within classes, in the mean over the directions: images of a class may all be the same
IMAGES_AT_ONCE = 512

Labels = NDArray[np.int64]
Batches = Callable[[], Iterator[tuple[FloatArray, Labels]]]


@dataclass(frozen=True)
class Evidence:
    """What a classifier sees of N images: `Seen`, in memory or mapped from a file.

    Attributes:
        pooled: (N, P).
        first_block: (N, W), if there are any.
        contrast: (N,), if pixels are seen.
    """

    pooled: Rows
    first_block: Rows | None = None
    contrast: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.pooled)

    def at(self, positions: Labels) -> "Evidence":
        """That of some of the images."""
        first_block = None if self.first_block is None else self.first_block.at(positions)
        contrast = None if self.contrast is None else self.contrast[positions]
        return Evidence(self.pooled.at(positions), first_block, contrast)

    def batches(self) -> Iterator[Seen]:
        """Float64, a batch at a time."""
        start, first_blocks = 0, None if self.first_block is None else self.first_block.batches()
        for pooled in self.pooled.batches():
            stop = start + len(pooled)
            first_block = None if first_blocks is None else torch.from_numpy(next(first_blocks))
            contrast = None if self.contrast is None else torch.from_numpy(self.contrast[start:stop])
            yield Seen(torch.from_numpy(pooled), first_block, contrast)
            start = stop


@torch.no_grad()
def evidence_of(classifier: Classifier, images: Tensor | Rows) -> Evidence:
    """What a classifier sees of images.

    Args:
        classifier: a trained one.
        images: uint8 (N, channels, H, W), not augmented; or the trunk's features of them.
    """
    if isinstance(images, Rows):
        return Evidence(images)
    classifier.eval()
    batches = track(images.split(IMAGES_AT_ONCE), "typicality")
    pooled, first_block, contrast = zip(*(classifier.inspect(batch) for batch in batches), strict=True)
    return Evidence(
        rows_of_tensor(torch.cat(pooled)),
        None if first_block[0] is None else rows_of_tensor(torch.cat(first_block)),
        None if contrast[0] is None else torch.cat(contrast).double().cpu().numpy(),
    )


def directions_of(classifier: Classifier) -> Projection | None:
    """The principal directions that the features are seen in, if they can stand for directions of a typicality's own.

    They can if the pooled features are many and have one length, and the projection is an orthogonal one.
    """
    projection, is_of_one_length = classifier.encoder.projection, classifier.architecture.encoder.power
    if not is_of_one_length or not isinstance(projection, nn.Linear) or projection.in_features <= ALL_UP_TO:
        return None
    weights, offset = (part.detach().double().cpu().numpy() for part in (projection.weight, projection.bias))
    is_orthogonal = np.allclose(weights @ weights.T, np.eye(len(weights)), atol=1e-4)
    return Projection(weights, offset) if is_orthogonal else None


def fit_parts(evidence: Evidence, labels: Labels, classes: int, directions: Projection | None = None) -> Parts:
    """Fit the parts to training images, in float64.

    Args:
        evidence: of N images.
        labels: (N,).
        classes: C; each has an image.
        directions: what the features are seen in, as `directions_of` gives it.
    """
    if directions is not None:
        return _fit_to_features(evidence, labels, classes, directions)

    def pooled() -> Iterator[tuple[FloatArray, Labels]]:
        return _labelled((seen.pooled for seen in evidence.batches()), labels)

    def joined() -> Iterator[tuple[FloatArray, Labels]]:
        return _labelled((seen.joined for seen in evidence.batches()), labels)

    pooled_dim, of_first = evidence.pooled.dim, 0 if evidence.first_block is None else evidence.first_block.dim
    of_pooled = _fit_directions(pooled, pooled_dim, classes)
    of_joined = _fit_directions(joined, pooled_dim + of_first, classes)
    tensors = _discriminants(of_pooled) | _others(of_joined)
    if evidence.first_block is not None:
        tensors |= _first_block(evidence)
    if len(of_joined.principal) < len(of_joined.mean):
        tensors |= {"mean": of_joined.mean, "directions": of_joined.principal}
    return _parts(tensors)


def features_in(directions: Projection | None, seen: Seen) -> Tensor:
    """The features (N, D) of what is seen in these directions; the pooled ones without them."""
    if directions is None:
        return seen.pooled
    weights, offset = map(torch.from_numpy, directions)
    return seen.pooled @ weights.mT + offset


@torch.no_grad()
def measured(parts: Parts, evidence: Evidence, directions: Projection | None = None) -> FloatArray:
    """The parts (N, K) of images, in float64."""
    found: FloatArray = torch.cat([parts(seen, features_in(directions, seen)) for seen in evidence.batches()]).numpy()
    return found


class _Directions(NamedTuple):
    """Gaussians of features (N, Q) in R of their principal directions.

    Attributes:
        mean: (Q,).
        principal: orthonormal, (R, Q).
        white: (R, Q), times features less their mean: white within classes, first those that hold the class means.
        class_means: in the first D of them, (C, D).
        between: the variances between classes in these, (D,).
    """

    mean: FloatArray
    principal: FloatArray
    white: FloatArray
    class_means: FloatArray
    between: FloatArray


class _Sums(NamedTuple):
    """Of features (N, Q): how many a class, their sums (C, Q), and the sum of all outer products (Q, Q)."""

    counts: Labels
    totals: FloatArray
    products: FloatArray


def _fit_directions(batches: Batches, dim: int, classes: int) -> _Directions:
    sums = _sums(batches, dim, classes)
    count, mean = sums.counts.sum(), sums.totals.sum(0) / sums.counts.sum()
    dim = dim if dim <= ALL_UP_TO else MOST_DIRECTIONS
    total = sums.products / count - np.outer(mean, mean)
    principal = np.ascontiguousarray(np.linalg.eigh(total)[1].T[::-1][:dim])
    means, shares = (sums.totals / sums.counts[:, None] - mean) @ principal.T, sums.counts / count
    within = principal @ total @ principal.T - (means.T * shares) @ means
    to_white = _whitening(within, _fourth_moment(batches, mean, principal, means), int(count))
    white_means = means @ to_white.T
    between, rotation = np.linalg.eigh((white_means.T * shares) @ white_means)
    between, rotation = between[::-1].clip(0), rotation[:, ::-1]
    most = min(classes - 1, dim)
    white = rotation.T @ to_white @ principal
    return _Directions(mean, principal, white, white_means @ rotation[:, :most], between[:most])


def _sums(batches: Batches, dim: int, classes: int) -> _Sums:
    counts, totals, products = np.zeros(classes, np.int64), np.zeros((classes, dim)), np.zeros((dim, dim))
    for batch, truth in batches():
        counts += np.bincount(truth, minlength=classes)
        np.add.at(totals, truth, batch)
        products += batch.T @ batch
    return _Sums(counts, totals, products)


def _fourth_moment(batches: Batches, mean: FloatArray, principal: FloatArray, means: FloatArray) -> float:
    """The sum over images of their deviations' lengths to the fourth power, in the principal directions."""
    return sum(
        float(np.square(np.square((batch - mean) @ principal.T - means[truth]).sum(1)).sum())
        for batch, truth in batches()
    )


def _whitening(covariance: FloatArray, fourth_moment: float, count: int) -> FloatArray:
    """What makes a covariance (R, R), once it is shrunk, the identity: K' with K' S K = 1."""
    dim = len(covariance)
    share = max(LEAST_SHRINKAGE, ledoit_wolf(covariance, fourth_moment, count, dim))
    variance = max(float(np.trace(covariance)) / dim, LEAST_VARIANCE)
    variances, vectors = np.linalg.eigh((1 - share) * covariance + share * variance * np.eye(dim))
    whitening: FloatArray = (vectors / np.sqrt(np.maximum(variances, share * variance))).T  # no less but for rounding
    return whitening


def _discriminants(found: _Directions) -> dict[str, FloatArray]:
    weights = found.white[: len(found.between)]
    return {
        "discriminants": weights,
        "discriminants_offset": -weights @ found.mean,
        "class_means": found.class_means,
        "between": found.between,
    }


def _others(found: _Directions) -> dict[str, FloatArray]:
    weights = found.white[len(found.between) :]
    if not len(weights):
        weights = np.zeros((1, len(found.mean)))
    return {"others": weights, "others_offset": -weights @ found.mean}


def _first_block(evidence: Evidence) -> dict[str, FloatArray]:
    def batches() -> Iterator[tuple[FloatArray, Labels]]:
        of_one_class = np.zeros(len(evidence), np.int64)
        found = (seen.first_block for seen in evidence.batches())
        return _labelled((unit(one) for one in found if one is not None), of_one_class)

    dim = 0 if evidence.first_block is None else evidence.first_block.dim
    counts, totals, products = _sums(batches, dim, 1)
    mean, everywhere = totals[0] / counts[0], np.eye(dim)
    covariance = products / counts[0] - np.outer(mean, mean)
    fourth = _fourth_moment(batches, mean, everywhere, np.zeros((1, len(mean))))
    weights = _whitening(covariance, fourth, int(counts[0]))
    return {"first_block": weights, "first_block_offset": -weights @ mean}


def _fit_to_features(evidence: Evidence, labels: Labels, classes: int, directions: Projection) -> Parts:
    """The parts where the first features stand for principal directions."""
    first = Projection(*(part[:MOST_DIRECTIONS] for part in directions))
    length = evidence.pooled.dim**0.5

    def inside() -> Iterator[tuple[FloatArray, Labels]]:
        return _labelled((features_in(first, seen) / length for seen in evidence.batches()), labels)

    found = _fit_directions(inside, len(first.offset), classes)
    centred = found._replace(mean=np.zeros_like(found.mean))
    mean = np.sum([seen.joined.sum(0).numpy() for seen in evidence.batches()], axis=0) / len(evidence)
    return _parts(_discriminants(centred) | _others(centred) | {"mean": mean, "seen_mean": found.mean})


def _labelled(batches: Iterator[Tensor], labels: Labels) -> Iterator[tuple[FloatArray, Labels]]:
    start = 0
    for batch in batches:
        yield batch.numpy(), labels[start : start + len(batch)]
        start += len(batch)


def _parts(arrays: dict[str, FloatArray]) -> Parts:
    return Parts(**{name: torch.tensor(array, dtype=torch.float64) for name, array in arrays.items()})
