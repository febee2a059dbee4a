"""Where a classifier is wrong and how sure it is: confusions, accuracy per class, reliability, the classes' distances.

Everything comes as plain values that JSON can hold.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from serving.runtimes import Outputs
from training.analysis.evidence import Evidence, FloatArray, Labels, log_joints_of_features
from training.calibration_error import ECE_BINS, confidences, equal_mass_bins, equal_width_bins
from training.classifier import Classifier
from training.evaluate import measure, nll_of_images
from training.intervals import Interval, accuracy_interval, ece_interval, nll_interval

CALIBRATED = ("images", "accuracy", "nll", "brier", "ece", "ece_equal_mass", "aurc", "e_aurc")


@dataclass(frozen=True)
class Pair:
    """Two classes and the distance of their means."""

    first: int
    second: int
    distance: float


def calibration_figures(evidence: Evidence) -> dict[str, Any]:
    """What calibration does on the test split.

    Returns:
        temperature; why, held_out and class_biases, how calibration was come by (see `Classifier.calibration`);
        served_at, it in short words, None where nothing is changed; before and after, each with
        the metrics of `evaluate.measure` (images, accuracy, nll, brier, both ECEs, AURC and E-AURC), intervals (see
        `intervals_of`) and reliability (see `reliability`).
    """
    test, classifier = evidence.test, evidence.classifier
    raw = torch.from_numpy(log_joints_of_features(classifier, test.features)).log_softmax(1)
    before = {"posterior": raw.exp().numpy(), "log_posterior": raw.numpy()}
    after = {name: test.outputs[name] for name in before}
    figures: dict[str, Any] = {"temperature": classifier.temperature, **classifier.calibration}
    figures["served_at"] = _in_short(classifier)
    for name, outputs in (("before", before), ("after", after)):
        metrics = measure(outputs, torch.from_numpy(test.labels))
        figures[name] = {key: metrics[key] for key in CALIBRATED}
        figures[name]["intervals"] = intervals_of(outputs, test.labels)
        figures[name]["reliability"] = reliability(outputs["posterior"], test.labels)
    return figures


def _in_short(classifier: Classifier) -> str | None:
    at = f"T = {classifier.temperature:.4g}"
    if classifier.class_biases.any():
        return f"{at} and a bias a class"
    return None if classifier.temperature == 1 else at


def intervals_of(outputs: Outputs, labels: Labels) -> dict[str, Interval]:
    """95 % intervals of accuracy, nll, ece and ece_equal_mass, by these names, over images like those of a split."""
    confidence, right = confidences(outputs["posterior"], labels)
    return {
        "accuracy": accuracy_interval(int(right.sum()), len(labels)),
        "nll": nll_interval(nll_of_images(outputs, labels)),
        "ece": ece_interval(confidence, right, equal_width_bins(confidence)),
        "ece_equal_mass": ece_interval(confidence, right, equal_mass_bins(confidence)),
    }


def reliability(posterior: NDArray[Any], labels: Labels, bins: int = ECE_BINS) -> dict[str, list[Any]]:
    """Sort images into bins of equal width, [lower, upper), of the largest class probability; 1 is in the last.

    Args:
        posterior: (N, C).
        labels: (N,).
        bins: how many.

    Returns:
        edges (bins + 1,); count, mean confidence and accuracy per bin, the latter two None in an empty bin.
    """
    confidence, right = confidences(posterior, labels)
    which = equal_width_bins(confidence, bins)
    count = np.bincount(which, minlength=bins)

    def mean(values: NDArray[Any]) -> list[float | None]:
        sums = np.bincount(which, weights=values, minlength=bins)
        return [round(float(s / n), 6) if n else None for s, n in zip(sums, count, strict=True)]

    return {
        "edges": np.linspace(0, 1, bins + 1).round(6).tolist(),
        "count": count.tolist(),
        "confidence": mean(confidence),
        "accuracy": mean(right),
    }


def confusion_counts(predicted: Labels, labels: Labels, classes: int) -> NDArray[np.int64]:
    """How often class i (row) was taken for class j (column), (C, C)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def confused_pairs(counts: NDArray[np.int64], most: int) -> list[dict[str, Any]]:
    """The `most` frequent confusions in order: truth and prediction as positions, count, share of the class."""
    errors = counts.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:most]
    pairs = np.column_stack(np.unravel_index(order, errors.shape))
    return [
        {
            "truth": int(truth),
            "prediction": int(prediction),
            "count": int(errors[truth, prediction]),
            "share": round(float(errors[truth, prediction] / counts[truth].sum()), 6),
        }
        for truth, prediction in pairs
        if errors[truth, prediction]
    ]


def class_accuracy(counts: NDArray[np.int64]) -> list[float]:
    """Share of each class's images that are recognised, (C,); 0 for a class without images."""
    shares: list[float] = (counts.diagonal() / counts.sum(1).clip(min=1)).round(6).tolist()
    return shares


def pairs_by_distance(features: FloatArray, labels: Labels, classes: int) -> list[Pair]:
    """Every pair of classes by the Euclidean distance of their mean features, the closest first.

    Args:
        features: (N, D).
        labels: (N,), every class at least once.
        classes: C, for C(C-1)/2 pairs.
    """
    means = np.stack([features[labels == c].mean(0) for c in range(classes)])
    first, second = np.triu_indices(classes, 1)
    distances = np.linalg.norm(means[first] - means[second], axis=1)
    order = distances.argsort(kind="stable")
    return [Pair(int(first[i]), int(second[i]), float(distances[i])) for i in order]


def class_distances(features: FloatArray, labels: Labels, classes: int) -> dict[str, Any]:
    """`pairs_by_distance` as plain values: distance and pairs, the classes' positions, in the same order."""
    pairs = pairs_by_distance(features, labels, classes)
    return {
        "distance": [round(pair.distance, 4) for pair in pairs],
        "pairs": [[pair.first, pair.second] for pair in pairs],
    }
