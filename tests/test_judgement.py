"""What a model can tell of its answers, what it refuses, and what it tells: by hand."""

from typing import Any

import numpy as np
import pytest
from conftest import manifest_fields

from serving.bundle import Manifest
from serving.errors import BadParameter
from serving.held_out import HeldOut
from serving.judgement import check_options, flags, prediction_sets, under_priors
from serving.parameters import Accept, Options

LABELS = ("cat", "dog", "eel")
NO_HELD_OUT = "has no held-out images to tell by, got {}: export it anew from a recipe that holds images out "
NO_HELD_OUT += "([calibration] share)"
EVEN = (("cat", 0.4), ("dog", 0.4), ("eel", 0.2))


def manifest(**fields: Any) -> Manifest:
    head = {"kind": "lda", "classes": 3, "dim": 2, "components": 1}
    outputs = ("posterior", "features")
    of_toy = {"labels": LABELS, "head": head, "sha256": {}, "priors": (0.5, 0.25, 0.25)}
    return Manifest(**manifest_fields("toy", "softmax", 1, outputs) | of_toy | fields)


def table(images: int, groups: tuple[int, ...] = (0, 1, 2)) -> HeldOut:
    """As many images of each class, whose labels have the probabilities 1/n to 1."""
    shares = np.arange(1, images + 1, dtype=np.float32) / images
    return HeldOut(np.repeat(shares, 3), np.tile(shares, 3), np.repeat([0, 1, 2], images), np.array(groups))


@pytest.mark.parametrize(
    ("options", "parameter", "value"),
    [
        (Options(coverage=0.9), "coverage", 0.9),
        (Options(atypical_below=0.05), "atypical_below", 0.05),
        (Options(accept=Accept(typicality=0.2)), "accept.typicality", 0.2),
    ],
)
def test_without_held_out_images_nothing_can_be_asked_of_them(options: Options, parameter: str, value: float) -> None:
    with pytest.raises(BadParameter) as info:
        check_options(options, manifest(), None)

    assert str(info.value) == f"{parameter} must be left out, as toy {NO_HELD_OUT.format(value)}"


@pytest.mark.parametrize("options", [Options(), Options(accept=Accept(probability=0.9)), Options(priors=EVEN)])
def test_what_needs_none_is_taken_without_them(options: Options) -> None:
    check_options(options, manifest(), None)


def test_a_coverage_beyond_what_the_images_can_tell_is_refused() -> None:
    check_options(Options(coverage=0.9), manifest(), table(9))

    with pytest.raises(
        BadParameter, match=r"^coverage must be above 0 and at most 0\.9, as there are 9 held-out images"
    ):
        check_options(Options(coverage=0.95), manifest(), table(9))


def test_priors_are_held_against_the_labels() -> None:
    check_options(Options(priors=EVEN), manifest(), table(9))

    for priors, message in {
        (("cat", 0.5), ("dog", 0.5)): "priors must be of all labels of toy, got none of 'eel': give a class that is "
        "hardly there a small share",
        (*EVEN, ("fox", 0.1)): "priors must be of the labels of toy, got 'fox' too",
    }.items():
        with pytest.raises(BadParameter) as info:
            check_options(Options(priors=priors), manifest(), None)
        assert str(info.value) == message


def test_a_bundle_that_does_not_know_its_own_priors_takes_none() -> None:
    message = r"^priors must be left out, as toy does not say those of its training images, got some: export it anew$"

    with pytest.raises(BadParameter, match=message):
        check_options(Options(priors=EVEN), manifest(priors=None), table(9))


def test_sets_under_other_priors_need_enough_images_of_each_class() -> None:
    check_options(Options(priors=EVEN, coverage=0.9), manifest(), table(9))

    with pytest.raises(BadParameter) as info:
        check_options(Options(priors=EVEN, coverage=0.9), manifest(), table(9, (0, 0, 0)))
    assert str(info.value) == (
        "coverage must be left out beside priors, as toy has too few held-out images of each class for sets that hold "
        "under other shares, got 0.9"
    )


def test_posterior_under_other_priors_is_bayes_rule() -> None:
    posterior = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.0, 1.0, 0.0]], np.float32)
    asked = [Options(priors=(("eel", 0.4), ("dog", 0.4), ("cat", 0.2))), Options(), Options(priors=EVEN)]

    found = under_priors(posterior, manifest(), asked)
    assert found == pytest.approx(np.array([[0.2, 0.48, 0.32], [0.5, 0.3, 0.2], [0, 1, 0]]), abs=1e-7)
    assert under_priors(posterior, manifest(), [Options()] * 3) is posterior


def test_posterior_under_other_priors_is_that_of_data_drawn_under_them() -> None:
    rng = np.random.default_rng(0)
    likelihood = rng.dirichlet(np.ones(50), 3)  # p(x | c) of 50 values
    training, own = np.array([0.5, 0.25, 0.25]), np.array([0.1, 0.2, 0.7])

    joint = training[:, None] * likelihood
    expected = own[:, None] * likelihood
    asked = [Options(priors=tuple(zip(LABELS, own.tolist(), strict=True)))] * 50
    found = under_priors((joint / joint.sum(0)).T, manifest(), asked)
    np.testing.assert_allclose(found, (expected / expected.sum(0)).T, rtol=1e-12)


def test_each_image_gets_the_set_that_it_asks_for() -> None:
    posterior = np.array([[0.15, 0.55, 0.3], [0.15, 0.55, 0.3], [0.15, 0.55, 0.3]])
    asked = [Options(coverage=0.9), Options(), Options(coverage=0.5)]

    found = prediction_sets(posterior, posterior, LABELS, asked, table(9))  # thresholds 1/9 and 5/9
    assert found == {0: ["dog", "eel", "cat"], 2: ["dog"]}
    assert prediction_sets(posterior, posterior, LABELS, [Options()] * 3, table(9)) == {}


def test_a_set_is_ranked_as_the_answer_is_and_holds_its_label() -> None:
    posterior, answered = np.array([[0.6, 0.3, 0.1]]), np.array([[0.2, 0.3, 0.5]])

    found = prediction_sets(posterior, answered, LABELS, [Options(coverage=0.6)], table(4))  # threshold 1/2
    assert found == {0: ["eel", "cat"]}


@pytest.mark.parametrize(
    ("probability", "typicality", "options", "images", "expected"),
    [
        (0.9, 0.5, Options(), 300, []),
        (0.9, 0.0099, Options(), 300, ["atypical"]),
        (0.9, 0.01, Options(), 300, []),
        (0.9, 0.04, Options(atypical_below=0.05), 300, ["atypical"]),
        (0.9, 0.0099, Options(atypical_below=0), 300, []),
        (0.9, 0.5, Options(), 33, ["typicality_too_coarse"]),  # 99 images: none is below 1 in 100
        (0.9, 0.5, Options(), 34, []),
        (0.9, 0.5, Options(atypical_below=0.02), 33, []),
        (0.9, 0.5, Options(accept=Accept(probability=0.95)), 300, ["uncertain"]),
        (0.95, 0.5, Options(accept=Accept(probability=0.95)), 300, []),
        (0.9, 0.04, Options(accept=Accept(typicality=0.05)), 300, ["uncertain"]),
        (0.9, 0.001, Options(accept=Accept(0.95, 0.05)), 300, ["atypical", "uncertain"]),
        (0.9, 0.9, Options(accept=Accept(0.95)), 9, ["typicality_too_coarse", "uncertain"]),
    ],
)
def test_flags(probability: float, typicality: float, options: Options, images: int, expected: list[str]) -> None:
    assert flags(probability, typicality, options, table(images)) == expected


def test_without_held_out_images_an_answer_can_be_uncertain_only() -> None:
    assert flags(0.5, None, Options(accept=Accept(0.9)), None) == ["uncertain"]
    assert flags(0.5, None, Options(), None) == []
