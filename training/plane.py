"""The feature plane of a bundle, made from what its float32 graph answers (serving/plane.py says what it is for).

    wanted = plane_images(images, held_out)                       # of an export
    info = write_plane(graph, wanted, spec, stage / "plane.npz")
    info = add_plane(Path("model_store/mnist-mda/1"), images)     # of a bundle that is there

The axes are those of the report's picture, by the training images. The points are held-out images; of a bundle without
any, images of the test split. A component's ellipse is the mean and the covariance of its share of the training images:
what EM's M step would make of them, in the plane. Of many or large images a sample is taken, in which every class has
its share.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.bundle import MANIFEST, PLANE, Bundle, InputSpec, PlaneInfo, staged, write_manifest
from serving.plane import Plane
from serving.runtimes import Outputs, open_onnx
from training.covariances import FloatArray
from training.evaluate import run_graph
from training.held_out import HeldOutImages, held_out_of
from training.images import LabelledImages, Streamed
from training.splits import stratified_order

POINTS = 2_000
TRAINING_IMAGES = 20_000
TRAINING_PIXELS = 5_000 * 224 * 224  # at most, all images together; large ones are fewer

Labels = NDArray[np.int64]
Graph = Callable[[NDArray[np.uint8]], Outputs]


class Projection(NamedTuple):
    """Features (N, D) to a plane: (z - centre) @ axes.T; share is how much of the variance stays, or None if all."""

    centre: FloatArray
    axes: FloatArray
    share: float | None


@dataclass(frozen=True)
class PlaneImages:
    """The images that a plane is made of.

    Attributes:
        points: those that are shown as points.
        train: training images, which give axes and ellipses.
    """

    points: Streamed
    train: Streamed


def projection_of(features: FloatArray) -> Projection:
    """Two features as they are, the first two principal components of more, one feature along the first axis."""
    dim = features.shape[1]
    if dim <= 2:
        return Projection(np.zeros(dim), np.eye(2, dim), None)
    centre = features.mean(0)
    values, vectors = np.linalg.eigh(np.cov((features - centre).T))
    axes = vectors[:, ::-1][:, :2].T
    return Projection(centre, axes, float(values[-2:].sum() / values.sum()))


def plane_images(images: LabelledImages, held_out: HeldOutImages | None) -> PlaneImages:
    """Choose the images of a plane.

    Args:
        images: with their splits.
        held_out: those that answers are compared with, if there are any.
    """
    spec = images.dataset.input
    affordable = max(1, TRAINING_PIXELS // (spec.height * spec.width))
    points = images.streamed("test") if held_out is None else held_out.part
    train = _sample(images.streamed("train"), min(TRAINING_IMAGES, affordable))
    return PlaneImages(_sample(points, POINTS), train)


def write_plane(graph: Graph, images: PlaneImages, spec: InputSpec, file: Path) -> PlaneInfo:
    """Make the plane of a graph, write it to a bundle's file, and say what is in it."""
    train = run_graph(graph, images.train.images, spec)
    shown = run_graph(graph, images.points.images, spec)["features"]
    labels = images.train.labels.numpy()
    projection = projection_of(train["features"].astype(np.float64))
    places = (train["features"] - projection.centre) @ projection.axes.T
    responsibilities = train.get("responsibilities", np.empty((len(labels), train["posterior"].shape[1], 0)))
    means, covariances, weights = ellipses(places, labels, responsibilities)
    plane = Plane(
        axes=projection.axes.astype(np.float32),
        centre=projection.centre.astype(np.float32),
        points=((shown - projection.centre) @ projection.axes.T).astype(np.float32),
        labels=images.points.labels.numpy(),
        means=means.astype(np.float32),
        covariances=covariances.astype(np.float32),
        weights=weights.astype(np.float32),
    )
    plane.write(file)
    share = projection.share
    return PlaneInfo(images=len(images.points), explained=None if share is None else round(share, 4))


def ellipses(
    places: FloatArray, labels: Labels, responsibilities: NDArray[np.floating]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, covariance and weight of each component by its share of the images of its class.

    Args:
        places: of images, (N, 2).
        labels: of the same, (N,).
        responsibilities: of them, (N, C, K).

    Returns:
        Means (C, K, 2), covariances (C, K, 2, 2) and weights (C, K), all zero where a component has no images.
    """
    classes, components = responsibilities.shape[1:]
    means, covariances = np.zeros((classes, components, 2)), np.zeros((classes, components, 2, 2))
    weights = np.zeros((classes, components))
    for label in range(classes):
        own = places[labels == label]
        shares = responsibilities[labels == label, label].astype(np.float64)
        for k, sum_of_shares in enumerate(shares.sum(0)):
            if sum_of_shares > 0:
                means[label, k] = shares[:, k] @ own / sum_of_shares
                apart = own - means[label, k]
                covariances[label, k] = (shares[:, k, None] * apart).T @ apart / sum_of_shares
                weights[label, k] = sum_of_shares / shares.sum()
    return means, covariances, weights


def add_plane(folder: Path, images: LabelledImages) -> PlaneInfo:
    """Give a finished bundle a plane, in the place of one that it has, and say what is in it; the model stays the same.

    Args:
        folder: of the bundle.
        images: those that it was trained and measured on, with their splits.
    """
    old = Bundle.load(folder)
    wanted = plane_images(images, held_out_of(old, images))
    graph, spec = open_onnx(old.onnx(), old.manifest.outputs), old.manifest.input
    fields = old.manifest.model_dump(exclude={"sha256", "schema_version"})
    with staged(folder, replace=True) as stage:
        shutil.copytree(folder, stage, ignore=shutil.ignore_patterns(MANIFEST, PLANE), dirs_exist_ok=True)
        info = write_plane(graph, wanted, spec, stage / PLANE)
        write_manifest(stage, **fields | {"plane": info})
    return info


def _sample(part: Streamed, most: int) -> Streamed:
    """At most so many images, every class in its share."""
    chosen = stratified_order(part.labels, seed=0)[:most].sort().values
    return Streamed(part.images[chosen], part.labels[chosen])
