"""Figures of prediction sets, worked by hand and by brute force."""

import numpy as np
import pytest

from serving.held_out import HeldOut
from training.prediction_sets import set_figures

ONE_GROUP = np.zeros(3, np.int64)


def held_out_of(probabilities: list[float], groups: np.ndarray = ONE_GROUP, labels: list[int] | None = None) -> HeldOut:
    return HeldOut(
        np.zeros(len(probabilities), np.float32),
        np.array(probabilities, np.float32),
        np.array(labels or [0] * len(probabilities), np.int64),
        groups,
    )


def test_figures_of_five_images_by_hand() -> None:
    """Of nine held-out images the ninth largest probability, 0.1, is needed for 90 %, the eighth, 0.2, for 80 %."""
    held_out = held_out_of([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    posterior = np.array(
        [[0.9, 0.05, 0.05], [0.5, 0.3, 0.2], [0.15, 0.7, 0.15], [0.8, 0.12, 0.08], [0.95, 0.04, 0.01]], np.float32
    )
    labels = np.array([0, 2, 0, 1, 2])

    figures = set_figures(posterior, labels, held_out, (0.8, 0.9, 0.95))

    assert figures == {
        "0.8": {
            "images": 5,
            "coverage": 0.4,
            "mean_size": 1.4,  # {0}, {0, 1, 2}, {1}, {0}, {0}
            "classes": {
                "least": 0.0,
                "mean": round(1 / 3, 6),
                "worst": [
                    {"class": 1, "images": 1, "coverage": 0.0},
                    {"class": 0, "images": 2, "coverage": 0.5},
                    {"class": 2, "images": 2, "coverage": 0.5},
                ],
            },
            "sizes": [{"labels": 1, "images": 4, "coverage": 0.25}, {"labels": 3, "images": 1, "coverage": 1.0}],
        },
        "0.9": {
            "images": 5,
            "coverage": 0.8,
            "mean_size": 2.0,  # {0}, {0, 1, 2}, {0, 1, 2}, {0, 1}, {0}
            "classes": {
                "least": 0.5,
                "mean": round(2.5 / 3, 6),
                "worst": [
                    {"class": 2, "images": 2, "coverage": 0.5},
                    {"class": 0, "images": 2, "coverage": 1.0},
                    {"class": 1, "images": 1, "coverage": 1.0},
                ],
            },
            "sizes": [
                {"labels": 1, "images": 2, "coverage": 0.5},
                {"labels": 2, "images": 1, "coverage": 1.0},
                {"labels": 3, "images": 2, "coverage": 1.0},
            ],
        },
        "0.95": None,
    }


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95, 0.99])
def test_coverage_and_size_are_those_of_brute_force(coverage: float) -> None:
    rng = np.random.default_rng(3)

    def answers(images: int) -> tuple[np.ndarray, np.ndarray]:
        logits, labels = 2 * rng.normal(size=(images, 3)), rng.integers(0, 3, images)
        logits[np.arange(images), labels] += 1.5
        exp = np.exp(logits)
        return (exp / exp.sum(1, keepdims=True)).astype(np.float32), labels

    known, of_known = answers(600)
    posterior, labels = answers(3000)
    own = known[np.arange(600), of_known]
    held_out = HeldOut(np.sort(own), own, of_known, np.arange(3))

    found = set_figures(posterior, labels, held_out, (coverage,))[str(coverage)]

    assert found is not None
    thresholds = []
    for label in range(3):
        descending = sorted(own[of_known == label].tolist(), reverse=True)
        thresholds.append(descending[int(np.ceil((len(descending) + 1) * coverage)) - 1])
    sets = [
        {c for c in range(3) if row[c] >= thresholds[c]} | {int(row.argmax())} for row in posterior.astype(np.float64)
    ]
    hits = [label in possible for label, possible in zip(labels, sets, strict=True)]
    assert found["coverage"] == pytest.approx(np.mean(hits), abs=1e-6)
    assert found["mean_size"] == pytest.approx(np.mean([len(possible) for possible in sets]), abs=1e-4)
    assert found["coverage"] == pytest.approx(coverage, abs=0.03)
    assert sum(one["images"] for one in found["sizes"]) == 3000
