"""Abstaining: areas worked by hand and by brute force, thresholds judged by scipy and by worlds whose risk is known."""

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import binomtest

from serving.held_out import HeldOut
from training.selective import (
    CANDIDATES,
    Graded,
    Thresholds,
    aurc,
    best_aurc,
    excess_aurc,
    fewest_images,
    find_thresholds,
    own_typicality,
    risks,
    typicality_among,
)

# Risk against coverage


def test_areas_of_four_images_by_hand() -> None:
    confidence, right = np.array([0.6, 0.9, 0.7, 0.8]), np.array([False, True, True, False])

    area = (0 + 1 / 2 + 1 / 3 + 2 / 4) / 4
    np.testing.assert_allclose(risks(confidence, right), [0, 1 / 2, 1 / 3, 2 / 4])
    assert aurc(confidence, right) == pytest.approx(area)
    assert excess_aurc(confidence, right) == pytest.approx(area - (0.5 + 0.5 * np.log(0.5)))


def test_equal_confidences_count_as_in_the_mean_of_their_orders() -> None:
    """0.8 comes four times, once wrong; 0.9 (wrong) is before and 0.5 (right) after it."""
    confidence = np.array([0.8, 0.9, 0.8, 0.8, 0.5, 0.8])
    right = np.array([True, False, True, False, True, True])
    orders = [(1, *middle, 4) for middle in permutations((0, 2, 3, 5))]

    each = [np.cumsum(~right[list(order)]) / np.arange(1, 7) for order in orders]

    np.testing.assert_allclose(risks(confidence, right), np.mean(each, axis=0))


@pytest.mark.parametrize("error", [0.0, 0.01, 0.3, 1.0])
def test_best_order_has_no_excess(error: float) -> None:
    images = 20_000
    right = np.arange(images) >= round(error * images)  # the wrong ones are the least confident

    assert aurc(np.arange(images), right) == pytest.approx(best_aurc(error), abs=1e-4)
    assert -1e-9 <= excess_aurc(np.arange(images), right) < 1e-4


def test_confidence_that_tells_nothing_has_the_error_as_area() -> None:
    assert aurc(np.full(10, 0.7), np.arange(10) < 6) == pytest.approx(0.4)


# Bounds


@pytest.mark.parametrize(("wrong", "accepted"), [(0, 1), (0, 299), (3, 700), (39, 40), (40, 40)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_bound_is_the_exact_one_of_scipy(wrong: int, accepted: int, confidence: float) -> None:
    found = Thresholds(0.5, None, 0.01, confidence, 1000, accepted, wrong)

    exact = binomtest(wrong, accepted, alternative="less").proportion_ci(confidence, method="exact").high
    assert found.error_bound == pytest.approx(exact)
    refused = binomtest(wrong, accepted, 0.01, alternative="less").pvalue <= 1 - confidence
    assert found.holds == refused


def test_299_images_without_an_error_hold_one_percent() -> None:
    enough, too_few = (Graded(np.full(n, 0.7), np.ones(n, bool)) for n in (299, 298))

    assert fewest_images(0.01) == 299
    assert find_thresholds(enough, enough, 0.01).holds
    assert not find_thresholds(enough, too_few, 0.01).holds


# Thresholds

World = Callable[[np.ndarray], np.ndarray]  # probability to the chance of an error


def calibrated(probability: np.ndarray) -> np.ndarray:
    return 1 - probability


def sure_of_the_wrong(probability: np.ndarray) -> np.ndarray:
    """As above, but of the images that it is surest of every fifth is wrong."""
    return np.where(probability > 0.98, 0.2, 1 - probability)


def drawn_from(world: World, images: int, rng: np.random.Generator) -> Graded:
    probability = rng.beta(6, 1, images)
    return Graded(probability, rng.random(images) >= world(probability))


@pytest.mark.parametrize("world", [calibrated, sure_of_the_wrong])
@pytest.mark.parametrize("error", [0.05, 0.1])
def test_accepted_answers_hold_the_error_as_often_as_they_should(world: World, error: float) -> None:
    rng, tries = np.random.default_rng(1), 200
    everything = drawn_from(world, 400_000, rng)
    wrong = np.cumsum(~everything.right[np.argsort(-everything.probability)]) / np.arange(1, 400_001)
    places = np.sort(-everything.probability)

    found = [find_thresholds(drawn_from(world, 1000, rng), drawn_from(world, 2000, rng), error) for _ in range(tries)]

    holding = [one for one in found if one.holds]
    true_error = [wrong[np.searchsorted(places, -one.probability, side="right") - 1] for one in holding]
    violations = int((np.array(true_error) > error).sum())
    assert binomtest(violations, tries, 0.05, alternative="greater").pvalue > 0.01
    assert world is not calibrated or len(holding) > 0.85 * tries


def test_accepted_answers_hold_the_error_among_typical_images() -> None:
    """One image in twenty is strange, less typical, sure and wrong; without a typicality nothing holds 2 %."""
    rng, error = np.random.default_rng(2), 0.02

    def world(images: int) -> tuple[Graded, np.ndarray]:
        strange = rng.random(images) < 0.05
        probability = np.where(strange, 0.999, rng.beta(40, 1, images))
        right = ~strange & (rng.random(images) < probability)
        return Graded(probability, right), rng.normal(size=images) - 5 * strange

    violations = holding = 0
    for _ in range(100):
        (pilot, of_pilot), (held_out, scores) = world(1000), world(3000)
        typical = held_out._replace(typicality=own_typicality(scores))
        others = pilot._replace(typicality=typicality_among(scores, of_pilot))

        found = find_thresholds(others, typical, error, typicality=0.08)

        (everything, of_everything) = world(20_000)
        accepted = (everything.probability >= found.probability) & (typicality_among(scores, of_everything) >= 0.08)
        violations += bool(found.holds and (~everything.right[accepted]).mean() > error)
        holding += found.holds
        assert found.parameters == {"accept": {"probability": found.probability, "typicality": 0.08}}
    assert binomtest(violations, 100, 0.05, alternative="greater").pvalue > 0.01
    assert holding > 80
    assert not find_thresholds(pilot, held_out, error).holds


def test_threshold_is_the_last_of_the_tests_that_pass() -> None:
    """Of 600 answers at 0.8 and above none is wrong; of the 200 at 0.7 every second is, which no longer holds 5 %."""
    probability = np.repeat([0.995, 0.9, 0.8, 0.7, 0.6], 200)
    right = np.ones(1000, bool)
    right[600::2] = False
    pilot = Graded(probability[:600], right[:600])

    found = find_thresholds(pilot, Graded(probability, right), 0.05)

    assert binomtest(100, 800, 0.05, alternative="less").pvalue > 0.05
    assert (found.probability, found.accepted, found.wrong) == (0.71, 600, 0)
    assert found.images == 1000
    assert found.parameters == {"accept": {"probability": 0.71}}


def test_everything_is_accepted_where_everything_holds_the_error() -> None:
    judged = Graded(np.linspace(0.3, 1, 1000), np.arange(1000) % 100 > 0)  # 1 % wrong

    found = find_thresholds(judged, judged, 0.03)

    assert (found.probability, found.accepted, found.wrong) == (0.0, 1000, 10)


def test_candidates_fall_from_the_highest_to_zero_and_can_be_read() -> None:
    assert list(CANDIDATES) == sorted(set(CANDIDATES), reverse=True)
    assert (CANDIDATES[0], CANDIDATES[-1]) == (0.9999, 0.0)
    assert all(len(str(candidate)) <= 6 for candidate in CANDIDATES)


def test_own_typicality_leaves_an_image_out_of_its_own_count() -> None:
    scores = np.array([3.0, 1.0, 2.0, 2.0])

    np.testing.assert_allclose(own_typicality(scores), [4 / 5, 1 / 5, 3 / 5, 3 / 5])
    for place, score in enumerate(scores):
        others = np.delete(scores, place)
        assert own_typicality(scores)[place] == (1 + (others <= score).sum()) / 5


def test_typicality_is_what_a_server_answers() -> None:
    rng = np.random.default_rng(0)
    held_out, scores = rng.normal(size=50).astype(np.float32), rng.normal(size=20).astype(np.float32)
    table = HeldOut(np.sort(held_out), held_out, np.zeros(50, np.int64), np.zeros(1, np.int64))

    np.testing.assert_array_equal(typicality_among(held_out, scores), table.typicality(scores))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"error": 0.0}, "error must be above 0 and below 1, got 0.0"),
        ({"error": 1.0}, "error must be above 0 and below 1, got 1.0"),
        ({"error": 0.1, "confidence": 1.0}, "confidence must be above 0 and below 1, got 1.0"),
        ({"error": 0.1, "typicality": 1.0}, "typicality must be at least 0 and below 1, got 1.0"),
    ],
)
def test_shares_that_are_none_are_refused(values: dict[str, float], message: str) -> None:
    judged = Graded(np.ones(3), np.ones(3, bool))

    with pytest.raises(ValueError, match=f"^{message}$"):
        find_thresholds(judged, judged, **values)
