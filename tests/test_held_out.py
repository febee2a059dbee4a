"""What held-out images say, worked by hand and held against libraries of conformal prediction."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HELD_OUT_IMAGES, held_out
from crepes import WrapClassifier
from mapie.classification import SplitConformalClassifier
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from serving.errors import BadParameter, BundleError
from serving.held_out import HeldOut

CLASSES = 5


def table(scores: list[float], probabilities: list[float], labels: list[int], groups: list[int]) -> HeldOut:
    return HeldOut(
        np.array(scores, np.float32), np.array(probabilities, np.float32), np.array(labels), np.array(groups)
    )


def drawn(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Posteriors (N, C) and labels that are drawn from sharper ones, so that the posteriors are not calibrated."""
    rng = np.random.default_rng(seed)
    posterior = rng.dirichlet(np.full(CLASSES, 0.4), count)
    true = posterior**2 / (posterior**2).sum(1, keepdims=True)
    labels = (rng.random((count, 1)) > true.cumsum(1)).sum(1).clip(max=CLASSES - 1)
    return posterior.astype(np.float32), labels


class Given(ClassifierMixin, BaseEstimator):
    """Takes posteriors for features, and says them."""

    def fit(self, features: Any, labels: Any) -> "Given":
        self.classes_ = np.arange(CLASSES)
        self.is_fitted_ = True
        return self

    def predict_proba(self, features: Any) -> Any:
        return np.asarray(features)

    def predict(self, features: Any) -> Any:
        return np.asarray(features).argmax(1)


def of_posterior(posterior: NDArray[np.float32], labels: NDArray[np.int64], groups: NDArray[np.int64]) -> HeldOut:
    own = posterior[np.arange(len(labels)), labels]
    return HeldOut(np.sort(own), own, labels, groups)


def with_likeliest(sets: NDArray[Any], posterior: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Sets as a library makes them, which may be empty, and the likeliest label in each."""
    return sets.astype(bool) | (np.arange(CLASSES) == posterior.argmax(1)[:, None])


def test_typicality_is_the_share_that_is_no_more_typical() -> None:
    four = table([1, 2, 2, 5], [0.5] * 4, [0] * 4, [0, 0])

    found = four.typicality(np.array([0.0, 1.0, 1.5, 2.0, 5.0, 9.0, np.nan], np.float32))
    assert found == pytest.approx([1 / 5, 2 / 5, 2 / 5, 4 / 5, 1, 1, 1 / 5])
    assert (four.least_typicality, len(four)) == (1 / 5, 4)


def test_typicality_of_images_like_the_held_out_ones_is_uniform() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=20_000).astype(np.float32)

    found = table(list(np.sort(scores[:999])), [], [], [0, 0]).typicality(scores[999:])
    for bound in (0.01, 0.1, 0.5):
        assert np.mean(found <= bound) == pytest.approx(bound, abs=4 * np.sqrt(bound * (1 - bound) / 999))


@pytest.mark.parametrize(
    ("coverage", "threshold"),
    [(0.9, 0.1), (0.85, 0.1), (0.8, 0.2), (0.5, 0.5), (0.45, 0.5), (0.1, 0.9), (0.01, 0.9), (1e-12, 0.9)],
)
def test_thresholds_are_those_worked_by_hand(coverage: float, threshold: float) -> None:
    nine = table([0] * 9, [0.3, 0.1, 0.5, 0.9, 0.7, 0.2, 0.4, 0.6, 0.8], [0] * 9, [0, 0])  # the ceil(10 c)-th greatest

    assert nine.thresholds(coverage) == pytest.approx([threshold] * 2)
    assert nine.most_coverage == 0.9


def test_each_group_of_classes_has_its_own_threshold() -> None:
    labels, own = [0, 0, 1, 1, 2, 2, 2], [0.9, 0.5, 0.6, 0.2, 0.3, 0.8, 0.7]
    grouped, classwise = (table([0] * 7, own, labels, groups) for groups in ([0, 0, 1], [0, 1, 2]))

    assert grouped.thresholds(0.75) == pytest.approx([0.2, 0.2, 0.3])  # of 4, the 4th; of 3, the 3rd
    assert classwise.thresholds(0.6) == pytest.approx([0.5, 0.2, 0.3])
    assert (grouped.is_class_conditional, classwise.is_class_conditional) == (False, True)
    assert (grouped.most_coverage, classwise.most_coverage) == (0.75, pytest.approx(2 / 3))


def test_no_set_is_empty() -> None:
    confident = table([0] * 4, [0.9] * 4, [0] * 4, [0, 0, 0])

    found = confident.possible(np.array([[0.4, 0.35, 0.25], [0.05, 0.95, 0.0]]), 0.5)
    assert found.tolist() == [[True, False, False], [False, True, False]]


@pytest.mark.parametrize("coverage", [0.91, 0.95, 1.0, 0.0])
def test_a_coverage_that_so_few_images_cannot_tell_is_refused(coverage: float) -> None:
    nine = table([0] * 9, [0.5] * 9, [0] * 9, [0, 0])

    with pytest.raises(BadParameter) as info:
        nine.possible(np.array([[0.5, 0.5]]), coverage)
    assert str(info.value) == (
        f"coverage must be above 0 and at most 0.9, as there are 9 held-out images to tell by, got {coverage}"
    )


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("count", [100, 399, 1000])
def test_sets_of_one_group_are_those_of_mapie(coverage: float, count: int) -> None:
    posterior, labels = drawn(count, 1)
    asked, _ = drawn(500, 2)
    mapie = SplitConformalClassifier(
        Given().fit(None, None), confidence_level=coverage, conformity_score="lac", prefit=True
    )
    _, sets = mapie.conformalize(posterior.astype(float), labels).predict_set(asked.astype(float))

    found = of_posterior(posterior, labels, np.zeros(CLASSES, int)).possible(asked, coverage)
    np.testing.assert_array_equal(found, with_likeliest(sets[:, :, 0], asked))


@pytest.mark.parametrize("coverage", [0.5037, 0.8093, 0.9011])  # crepes takes p-values of just 1 - coverage too
@pytest.mark.parametrize("by_class", [False, True])
def test_sets_are_those_of_crepes(coverage: float, by_class: bool) -> None:
    posterior, labels = drawn(600, 3)
    asked, _ = drawn(500, 4)
    groups = np.arange(CLASSES) if by_class else np.zeros(CLASSES, int)
    crepes = WrapClassifier(Given().fit(None, None))
    crepes.calibrate(posterior.astype(float), labels, class_cond=by_class)
    sets = crepes.predict_set(asked.astype(float), labels=False, confidence=coverage, smoothing=False)

    found = of_posterior(posterior, labels, groups).possible(asked, coverage)
    np.testing.assert_array_equal(found, with_likeliest(sets, asked))


@pytest.mark.parametrize("groups", [[0] * CLASSES, [0, 0, 1, 1, 1], list(range(CLASSES))])
def test_the_right_label_is_possible_as_often_as_asked_for(groups: list[int]) -> None:
    posterior, labels = drawn(3000, 5)
    asked, right = drawn(20_000, 6)

    found = of_posterior(posterior, labels, np.array(groups)).possible(asked, 0.9)
    covered = found[np.arange(len(right)), right]
    for group in set(groups):
        within = np.array(groups)[right] == group
        assert covered[within].mean() == pytest.approx(0.9, abs=0.03)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = held_out()
    written.write(tmp_path / "held_out.npz")

    read = HeldOut.read(tmp_path / "held_out.npz")
    assert len(read) == HELD_OUT_IMAGES
    for name in ("typicality_scores", "label_probabilities", "labels", "groups"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        assert getattr(read, name).dtype == getattr(written, name).dtype


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", labels=np.zeros(3))
    (tmp_path / "text.npz").write_text("text")

    for name in ("other.npz", "text.npz", "missing.npz"):
        with pytest.raises(BundleError, match=rf"{name} must hold typicality_scores, label_probabilities, labels, "):
            HeldOut.read(tmp_path / name)
