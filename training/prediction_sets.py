"""What prediction sets are worth on a split: how often the right label is in them, and how many labels they have.

    set_figures(outputs["posterior"], labels, HeldOut.read(file))["0.9"]["mean_size"]

The coverage of all images is what the sets promise (serving/held_out.py); that of a class, or of the sets of one size,
they may miss. Both are told with the number of images they are of, as of few images a share says little.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.held_out import HeldOut

COVERAGES = (0.8, 0.9, 0.95, 0.99)
WORST = 5  # classes that are named

Labels = NDArray[np.int64]


def set_figures(
    posterior: NDArray[np.floating], labels: Labels, held_out: HeldOut, coverages: Sequence[float] = COVERAGES
) -> dict[str, dict[str, Any] | None]:
    """Figures of the prediction sets of a split, by coverage.

    Args:
        posterior: of the split's images, (N, C), as the graph answers it.
        labels: (N,).
        held_out: of the same graph.
        coverages: that the sets are to have.

    Returns:
        For each coverage in words, images; coverage, the share of sets that hold the right label; mean_size, in labels;
        classes (see `_of_classes`); sizes, by the number of labels images and coverage. None for a coverage that there
        are too few held-out images for.
    """
    return {
        str(coverage): _figures_at(posterior, labels, held_out, coverage)
        if coverage <= held_out.most_coverage
        else None
        for coverage in coverages
    }


def _figures_at(posterior: NDArray[np.floating], labels: Labels, held_out: HeldOut, coverage: float) -> dict[str, Any]:
    possible = held_out.possible(posterior, coverage)
    covered, size = possible[np.arange(len(labels)), labels], possible.sum(1)
    return {
        "images": len(labels),
        "coverage": round(float(covered.mean()), 6),
        "mean_size": round(float(size.mean()), 4),
        "classes": _of_classes(covered, labels),
        "sizes": [{"labels": labels_of, **share} for labels_of, share in _shares(covered, size)],
    }


def _of_classes(covered: NDArray[np.bool_], labels: Labels) -> dict[str, Any]:
    """Coverage of the classes that have images: least, mean over classes, and the worst classes with their images."""
    by_class = [{"class": label, **share} for label, share in _shares(covered, labels)]
    worst = sorted(by_class, key=lambda of_class: of_class["coverage"])[:WORST]
    mean = np.mean([of_class["coverage"] for of_class in by_class])
    return {"least": worst[0]["coverage"], "mean": round(float(mean), 6), "worst": worst}


def _shares(covered: NDArray[np.bool_], group: NDArray[np.int64]) -> list[tuple[int, dict[str, Any]]]:
    """Images and coverage of every group (N,) that has any, in ascending order."""
    counts, hits = np.bincount(group), np.bincount(group, covered)
    return [
        (int(g), {"images": int(counts[g]), "coverage": round(float(hits[g] / counts[g]), 6)})
        for g in np.flatnonzero(counts)
    ]
