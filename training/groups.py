"""Groups of classes that share a threshold of prediction sets: the classes themselves where each has enough images.

    groups = groups_of(held_out_labels, 100, Scored(calibration_labels, calibration_probabilities))   # int64 (100,)

A coverage that holds within a group holds for each class of it only as far as its classes are alike. So every class is
a group of its own where each has 100 held-out images, with which a coverage of 99 % can be told. With fewer, classes
whose scores are alike are put together, by k-means on the quantiles of their scores. These scores must be of *other*
images than the thresholds are from, or a class would be put where its threshold suits by chance; the images that the
temperature was fitted to will do, and no held-out image is spent. Without such images, or with too few, all classes are
one group.

The number of clusters keeps the two rules of the paper's authors: two images a class for every cluster that they are to
be told apart by, and 150 a cluster, in the mean, to find its threshold from. It is then lowered until each has 100.

Reference: Ding et al. 2023, Class-Conditional Conformal Prediction with Many Classes, NeurIPS.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]

FEWEST_OF_A_GROUP = 100  # held-out images
FEWEST_TO_CLUSTER, FEWEST_OF_A_CLASS = 1_000, 20  # of the held-out images and of the others
IMAGES_A_CLUSTER = 150  # held out, in the mean
IMAGES_TO_TELL = 2  # of each class, a cluster
QUANTILES = (0.5, 0.6, 0.7, 0.8, 0.9)


class Scored(NamedTuple):
    """Images with labels (N,), and the posterior of each image's own label (N,)."""

    labels: Labels
    label_probabilities: NDArray[Any]


def groups_of(labels: Labels, classes: int, others: Scored | None = None) -> Labels:
    """The group of each class, from 0, int64 (C,).

    Args:
        labels: of the held-out images, (n,).
        classes: C.
        others: what the model answered for other images, by which classes are found alike; None if there are none.
    """
    counts = np.bincount(labels, minlength=classes)
    if counts.min() >= FEWEST_OF_A_GROUP:
        return np.arange(classes)
    if others is None or not (_can_cluster(labels, classes) and _can_cluster(others.labels, classes)):
        return np.zeros(classes, np.int64)
    points = _quantiles(others, classes)
    of_others = np.bincount(others.labels, minlength=classes)
    for clusters in range(_most_clusters(len(labels), int(of_others.min()), points), 1, -1):
        groups = _clustered(points, of_others, clusters)
        if np.bincount(groups, counts).min() >= FEWEST_OF_A_GROUP:
            return groups
    return np.zeros(classes, np.int64)


def _can_cluster(labels: Labels, classes: int) -> bool:
    fewest = np.bincount(labels, minlength=classes).min()
    return len(labels) >= FEWEST_TO_CLUSTER and bool(fewest >= FEWEST_OF_A_CLASS)


def _quantiles(others: Scored, classes: int) -> NDArray[np.float64]:
    """Quantiles of each class's scores, 1 less the posterior of the label, (C, 5)."""
    scores = 1 - others.label_probabilities.astype(np.float64)
    return np.stack([np.quantile(scores[others.labels == label], QUANTILES) for label in range(classes)])


def _most_clusters(held_out: int, fewest_of_others: int, points: NDArray[np.float64]) -> int:
    different = len(np.unique(points, axis=0))
    return min(fewest_of_others // IMAGES_TO_TELL, held_out // IMAGES_A_CLUSTER, different)


def _clustered(points: NDArray[np.float64], images: NDArray[np.int64], clusters: int) -> Labels:
    """Which cluster each class is in, (C,), numbered as they first appear; a class counts by the root of its images."""
    from sklearn.cluster import KMeans

    fitted = KMeans(clusters, n_init=10, random_state=0).fit(points, sample_weight=np.sqrt(images))
    _, first, place = np.unique(fitted.labels_, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[place].astype(np.int64)
