"""Galleries of images for a report: members of the components, confused images, classes that are close together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.analysis.evidence import Answers, Evidence
from training.component_names import ComponentNames
from training.components import assignments, of_class
from training.examples import mean_image
from training.heads import DiscriminantHead
from training.image_files import in_memory
from training.report.image_plots import GalleryRow, gallery
from training.report.page import Picture
from training.report.plots import shortened

COLUMNS = 8  # images of a group
MOST_ROWS = 40
PAIRS_SHOWN = 8
SEED = 0  # of the images that are picked at random
BLANK = 255  # a gray level


def component_members(evidence: Evidence, named: ComponentNames | None = None) -> Picture:
    """Images of each component that has any: those most typical of it, and others at random.

    Of many classes, those are shown whose components are used most evenly.

    Args:
        evidence: the network's answers.
        named: what people call the components.
    """
    head, train = evidence.classifier.head, evidence.train
    if not isinstance(head, DiscriminantHead):
        raise ValueError(f"a head with components must be generative, got {head.kind}")
    assigned = assignments(head, train.features, train.labels)
    generator = np.random.default_rng(SEED)
    chosen = _most_even(head, assigned, train.labels)
    rows = []
    for label in chosen:
        members = np.flatnonzero(train.labels == label)
        closeness = of_class(head, train.features[members], label)
        for k in range(head.components):
            own = assigned[members] == k
            if not own.any():
                continue
            ranked = members[own][np.argsort(-closeness[own, k], kind="stable")]
            called = shortened((named or {}).get(evidence.dataset.classes[label], {}).get(k, f"comp. {k}"), 30)
            name = f"{shortened(evidence.dataset.classes[label], 12)} · {called} · {own.mean():.0%}"
            rows.append(GalleryRow(name, [_pick(train, ranked[:COLUMNS]), _some(train, ranked[COLUMNS:], generator)]))
    figure = gallery(rows, ["most typical", "at random"], COLUMNS)
    caption = "Training images of each component, with the component's share of its class."
    if empty := len(chosen) * head.components - len(rows):
        caption += f" Left out: {empty} components that have none."
    if len(chosen) < head.classes:
        caption += f" The {len(chosen)} classes whose components are used most evenly."
    return Picture("components", caption, f"Images of {len(rows)} components.", figure, wide=True)


def component_means(evidence: Evidence) -> Picture:
    """The mean image of each component, of as many classes as fit; it shows no single image and may be published."""
    head, train = evidence.classifier.head, evidence.train
    if not isinstance(head, DiscriminantHead):
        raise ValueError(f"a head with components must be generative, got {head.kind}")
    assigned = assignments(head, train.features, train.labels)
    chosen, rows = _most_even(head, assigned, train.labels), []
    for label in chosen:
        members = (np.flatnonzero((train.labels == label) & (assigned == k)) for k in range(head.components))
        means = (mean_image(train.images, own) for own in members)
        blank = np.full(train.images.shape[1:], BLANK, np.uint8)
        tiles = [torch.from_numpy(blank if mean is None else mean)[None] for mean in means]
        rows.append(GalleryRow(shortened(evidence.dataset.classes[label]), tiles))
    figure = gallery(rows, [str(k) for k in range(head.components)], 1)
    caption = "The mean of the training images of each component, by its number; blank where they are few."
    if len(chosen) < head.classes:
        caption += f" The {len(chosen)} classes whose components are used most evenly."
    return Picture("component-means", caption, f"Mean images of the components of {len(chosen)} classes.", figure)


def confused_images(evidence: Evidence, pairs: Sequence[dict[str, Any]]) -> Picture:
    """Test images of the most frequent confusions, the surest first."""
    test, classes = evidence.test, evidence.dataset.classes
    posterior = test.outputs["posterior"]
    predicted, rows = posterior.argmax(1), []
    for pair in pairs[:PAIRS_SHOWN]:
        found = np.flatnonzero((test.labels == pair["truth"]) & (predicted == pair["prediction"]))
        ranked = found[np.argsort(-posterior[found, pair["prediction"]], kind="stable")]
        name = f"{shortened(classes[pair['truth']], 12)} → {shortened(classes[pair['prediction']], 12)}"
        rows.append(GalleryRow(name, [_pick(test, ranked[: COLUMNS + 2])]))
    figure = gallery(rows, ["surest errors first"], COLUMNS + 2)
    caption = "Test images of the most frequent confusions, true class → prediction."
    return Picture("confused-images", caption, f"Images of {len(rows)} pairs of classes.", figure, wide=True)


def close_classes(evidence: Evidence, pairs: Sequence[Sequence[int]]) -> Picture:
    """Training images of the closest pairs of classes, one row a class."""
    train, generator = evidence.train, np.random.default_rng(SEED)
    rows = [
        GalleryRow(
            shortened(evidence.dataset.classes[label]),
            [_some(train, np.flatnonzero(train.labels == label), generator, COLUMNS + 2)],
        )
        for pair in pairs[:3]
        for label in pair
    ]
    figure = gallery(rows, ["at random"], COLUMNS + 2)
    caption = "Training images of the closest classes, two rows a pair."
    return Picture("close-classes", caption, f"Images of {len(rows) // 2} pairs of classes.", figure, wide=True)


def _most_even(head: DiscriminantHead, assigned: NDArray[np.int64], labels: NDArray[np.int64]) -> list[int]:
    """Positions of as many classes as fit, in order: those whose largest component has the least share."""
    fitting = max(1, MOST_ROWS // head.components)
    largest = [np.bincount(assigned[labels == c]).max() / (labels == c).sum() for c in range(head.classes)]
    return sorted(np.argsort(largest, kind="stable")[:fitting].tolist())


def _pick(answers: Answers, positions: NDArray[np.int64]) -> Tensor:
    return in_memory(answers.images[torch.from_numpy(positions)])


def _some(
    answers: Answers, positions: NDArray[np.int64], generator: np.random.Generator, most: int = COLUMNS
) -> Tensor:
    return _pick(answers, generator.permutation(positions)[:most])
