"""Groups of classes on simulated scores: alike classes come together, none where there are too few images."""

import numpy as np
import pytest

from serving.held_out import HeldOut
from training.groups import FEWEST_OF_A_GROUP, Scored, groups_of

CLASSES, IMAGES = 40, 30  # of a class, held out and others


def simulated(seed: int, images: int = IMAGES) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the posterior of each: even classes are easy (0.95 in the mean), odd ones are hard (0.5)."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), images)
    return labels, np.where(labels % 2 == 0, rng.beta(19, 1, len(labels)), rng.beta(4, 4, len(labels)))


def test_classes_with_a_hundred_images_are_groups_of_their_own() -> None:
    labels = np.repeat(np.arange(3), [100, 150, 100])

    assert groups_of(labels, 3).tolist() == [0, 1, 2]
    assert groups_of(labels, 3, Scored(labels, np.ones(350))).tolist() == [0, 1, 2]


def test_classes_that_are_alike_come_together() -> None:
    labels, _ = simulated(0)

    groups = groups_of(labels, CLASSES, Scored(*simulated(1)))

    assert groups.dtype == np.int64
    assert groups[0] == 0
    assert sorted(set(groups.tolist())) == list(range(groups.max() + 1))
    assert 2 <= groups.max() + 1 <= CLASSES * IMAGES // 150
    assert not set(groups[::2].tolist()) & set(groups[1::2].tolist())
    assert np.bincount(groups[labels]).min() >= FEWEST_OF_A_GROUP


def test_groups_bring_the_coverage_of_each_kind_of_class_nearer_to_what_was_asked_for() -> None:
    labels, probabilities = simulated(0)
    grouped = groups_of(labels, CLASSES, Scored(*simulated(1)))
    of_test, right = simulated(2, images=2000)
    is_easy = of_test % 2 == 0

    gaps = []
    for groups in (grouped, np.zeros(CLASSES, np.int64)):
        held_out = HeldOut(np.sort(probabilities), probabilities, labels, groups)
        covered = right >= held_out.thresholds(0.9)[of_test]
        gaps.append(max(abs(covered[is_easy].mean() - 0.9), abs(covered[~is_easy].mean() - 0.9)))

    assert gaps[0] < 0.03 < 0.07 < gaps[1]


@pytest.mark.parametrize("images", [(19, 60), (60, 19), (24, 60), (60, 24)])
def test_too_few_images_are_one_group(images: tuple[int, int]) -> None:
    """Of a class, held out and others: less than 20, or less than 1,000 in all."""
    labels, _ = simulated(0, images[0])

    assert groups_of(labels, CLASSES, Scored(*simulated(1, images[1]))).tolist() == [0] * CLASSES


def test_nothing_to_tell_alike_by_is_one_group() -> None:
    labels, _ = simulated(0)

    assert groups_of(labels, CLASSES).tolist() == [0] * CLASSES
    assert groups_of(labels, CLASSES, Scored(labels, np.full(len(labels), 0.7))).tolist() == [0] * CLASSES


def test_single_class_unlike_the_others_would_be_too_small_a_group() -> None:
    labels = np.repeat(np.arange(CLASSES), IMAGES)
    probabilities = np.where(labels == 7, 0.1, 0.9)

    assert groups_of(labels, CLASSES, Scored(labels, probabilities)).tolist() == [0] * CLASSES
