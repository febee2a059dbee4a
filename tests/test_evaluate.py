"""Metrics, judged by hand-worked cases."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.calibration import calibration_curve
from training_samples import digits

from training.classifier import Architecture, build_classifier
from training.evaluate import eager, measure, occupancy_of, run_graph
from training.recipe import EncoderSpec, HeadSpec

POSTERIOR = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.5, 0.25, 0.25]], np.float32)
LABELS = torch.tensor([0, 1, 2, 2])


def test_metrics_of_four_images_by_hand() -> None:
    metrics = measure({"posterior": POSTERIOR, "features": np.zeros((4, 2), np.float32)}, LABELS)

    squared = [0.3**2 + 0.2**2 + 0.1**2, 0.6**2 + 0.7**2 + 0.1**2, 0.1**2 + 0.1**2 + 0.2**2, 0.5**2 + 0.25**2 + 0.75**2]
    # Confidences 0.7 (right), 0.6 (wrong), 0.8 (right), 0.5 (wrong) lie in four bins of width 1/15.
    gaps = [1 - 0.7, 0.6, 1 - 0.8, 0.5]
    assert metrics == {
        "images": 4,
        "accuracy": 0.5,
        "nll": pytest.approx(-(math.log(0.7) + math.log(0.3) + math.log(0.8) + math.log(0.25)) / 4, abs=2e-6),
        "brier": pytest.approx(sum(squared) / 4, abs=2e-6),
        "ece": pytest.approx(sum(gaps) / 4, abs=2e-6),
        "ece_equal_mass": pytest.approx(sum(gaps) / 4, abs=2e-6),
        # From the most confident on: right, right, wrong, wrong.
        "aurc": pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4, abs=2e-6),
        "e_aurc": pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4 - (0.5 + 0.5 * math.log(0.5)), abs=2e-6),
    }


def test_calibration_error_compares_averages_within_a_bin() -> None:
    """All ten confidences in (0.8, 0.8667]: mean 0.83, of which 8 in 10 are right."""
    confidence = np.linspace(0.81, 0.85, 10)
    posterior = np.stack([confidence, 1 - confidence], axis=1)

    metrics = measure({"posterior": posterior}, torch.tensor([0] * 8 + [1] * 2))

    assert metrics["ece"] == pytest.approx(0.83 - 0.8, abs=2e-6)


def test_calibration_error_has_fifteen_bins_of_equal_width() -> None:
    """0.85 (wrong) and 0.88 (right) are on two sides of 13/15, 0.88 and 0.92 (right) in one bin."""
    confidence = np.array([0.85, 0.88, 0.92])
    posterior = np.stack([confidence, 1 - confidence], axis=1)

    metrics = measure({"posterior": posterior}, torch.tensor([1, 0, 0]))

    assert metrics["ece"] == pytest.approx((0.85 + 2 * (1 - 0.9)) / 3, abs=2e-6)


def test_confidence_of_one_is_in_the_last_of_the_fifteen_bins() -> None:
    """1 (wrong) and 0.95 (right) share it, and their gaps, of opposite signs, are added up."""
    metrics = measure({"posterior": np.array([[1, 0], [0.95, 0.05]])}, torch.tensor([1, 0]))

    assert metrics["ece"] == pytest.approx((1.95 - 1) / 2, abs=2e-6)


def test_bins_of_equal_mass_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    confidence = rng.beta(8, 1, 300) / 2 + 0.5
    right = rng.random(300) < confidence**2

    posterior = np.stack([confidence, 1 - confidence], axis=1)
    metrics = measure({"posterior": posterior}, torch.from_numpy(np.where(right, 0, 1)))

    accuracies, means = calibration_curve(right, confidence, n_bins=15, strategy="quantile")
    assert len(means) == 15  # of twenty images each
    assert metrics["ece_equal_mass"] == pytest.approx(np.abs(accuracies - means).mean(), abs=2e-6)
    assert metrics["ece_equal_mass"] != pytest.approx(metrics["ece"], abs=1e-3)


def test_equal_confidences_share_a_bin_of_equal_mass_in_any_order() -> None:
    """Of twenty, sixteen confidences are 0.9, three quarters of them right; the others are right too."""
    confidence = np.array([0.6, 0.7, 0.75, 0.8] + 16 * [0.9])
    posterior = np.stack([confidence, 1 - confidence], axis=1)
    labels = torch.tensor(4 * [0] + [0, 0, 0, 1] * 4)
    order = np.random.default_rng(0).permutation(20)

    measured = [measure({"posterior": posterior[at]}, labels[at]) for at in (np.arange(20), order)]

    gaps = 0.4 + 0.3 + 0.25 + 0.2 + 16 * 0.15
    assert [metrics["ece_equal_mass"] for metrics in measured] == pytest.approx([gaps / 20, gaps / 20], abs=2e-6)


def test_nll_is_of_the_log_posterior_where_no_float_holds_the_posterior() -> None:
    log_posterior = np.array([[0.0, -800.0], [-0.5, math.log(1 - math.exp(-0.5))]])
    outputs = {"posterior": np.exp(log_posterior).astype(np.float32), "log_posterior": log_posterior}

    assert measure(outputs, torch.tensor([1, 0]))["nll"] == (800 + 0.5) / 2


def test_certain_and_right_is_a_perfect_score() -> None:
    metrics = measure({"posterior": np.eye(3, dtype=np.float32)}, torch.tensor([0, 1, 2]))

    nothing = ("nll", "brier", "ece", "ece_equal_mass", "aurc", "e_aurc")
    assert metrics == {"images": 3, "accuracy": 1.0} | dict.fromkeys(nothing, 0.0)


def test_certain_and_wrong_is_a_finite_score() -> None:
    metrics = measure({"posterior": np.eye(3, dtype=np.float32)}, torch.tensor([1, 2, 0]))

    assert (metrics["accuracy"], metrics["brier"], metrics["ece"], metrics["ece_equal_mass"]) == (0.0, 2.0, 1.0, 1.0)
    assert metrics["nll"] == pytest.approx(-math.log(np.finfo(np.float32).tiny))
    assert (metrics["aurc"], metrics["e_aurc"]) == (1.0, 0.0)  # no order helps


def test_posterior_that_rounding_lifted_above_one_is_one() -> None:
    """torchmetrics takes scores outside [0, 1] for logits and would normalise all of them anew."""
    posterior = np.array([[np.nextafter(np.float32(1), np.float32(2)), 0], [0.25, 0.75]], np.float32)

    metrics = measure({"posterior": posterior}, torch.tensor([0, 1]))

    assert metrics["ece"] == pytest.approx(0.25 / 2, abs=2e-6)


def test_log_density_is_the_mean() -> None:
    log_density = np.array([-1.0, -2.0, 3.0, 10.0], np.float32)

    metrics = measure({"posterior": POSTERIOR, "log_density": log_density}, LABELS)
    assert metrics["log_density"] == 2.5
    assert metrics["log_density_quantiles"]["0.5"] == 1.0
    assert metrics["log_density_quantiles"]["0.25"] == -1.25


def test_occupancy_is_the_share_of_a_classs_images_per_component() -> None:
    """Images of class 0 go to components 1, 1, 0; the one of class 2 to component 2; class 1 has none."""
    responsibilities = np.full((4, 3, 3), 1 / 3)
    for image, label, component in ((0, 0, 1), (1, 0, 1), (2, 0, 0), (3, 2, 2)):
        responsibilities[image, label] = [0.1, 0.1, 0.1]
        responsibilities[image, label, component] = 0.8
    labels = torch.tensor([0, 0, 0, 2])

    occupancy = occupancy_of(responsibilities, labels.numpy())

    np.testing.assert_allclose(occupancy, [[1 / 3, 2 / 3, 0], [0, 0, 0], [0, 0, 1]])
    metrics = measure({"posterior": POSTERIOR, "responsibilities": responsibilities}, labels)
    assert metrics["occupancy"] == [[0.3333, 0.6667, 0], [0, 0, 0], [0, 0, 1]]


def test_one_component_has_no_occupancy() -> None:
    assert "occupancy" not in measure({"posterior": POSTERIOR, "responsibilities": np.ones((4, 3, 1))}, LABELS)


def test_graph_is_run_in_batches_and_put_together_in_order() -> None:
    sizes = []

    def call(images: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(images))
        return {"posterior": images[:, 0, 0, :3] / 255, "features": images[:, 0, 1, :2]}

    images = digits().images[:10]

    outputs = run_graph(call, images, batch_size=4)

    assert sizes == [4, 4, 2]
    np.testing.assert_array_equal(outputs["features"], images[:, 0, 1, :2])
    np.testing.assert_array_equal(outputs["posterior"], images[:, 0, 0, :3].numpy() / 255)


def test_eager_classifier_answers_what_it_scores() -> None:
    torch.manual_seed(0)
    architecture = Architecture((1, 8, 8), 10, EncoderSpec(dim=3, width=4), HeadSpec(kind="mda", components=2))
    classifier = build_classifier(architecture).eval()
    classifier.learn_normalisation(digits().images)
    classifier.temperature = 0.01
    images = digits().images[:7]
    scores = classifier(images)

    outputs = eager(classifier, torch.device("cpu"))(images.numpy())

    assert list(outputs) == ["posterior", "responsibilities", "log_density", "features", "log_posterior"]
    log_posterior = log_softmax(scores.log_joints.detach().double().numpy() / 0.01, axis=1)
    assert log_posterior.min() < -200
    np.testing.assert_allclose(outputs["log_posterior"], log_posterior, atol=1e-3)
    np.testing.assert_allclose(outputs["posterior"], np.exp(log_posterior), atol=1e-4)
    constant = -1.5 * math.log(2 * math.pi)
    expected = scores.component_log_joints.detach().flatten(1).logsumexp(1) + constant
    np.testing.assert_allclose(outputs["log_density"], expected, rtol=1e-5)


def test_pooled_features_are_what_is_projected() -> None:
    torch.manual_seed(0)
    architecture = Architecture((1, 8, 8), 10, EncoderSpec(dim=3, width=4), HeadSpec(kind="lda"))
    classifier = build_classifier(architecture).eval()
    classifier.learn_normalisation(digits().images)
    images = digits().images[:7]

    outputs = run_graph(eager(classifier, torch.device("cpu"), pooled=True), images, batch_size=4)

    assert outputs["pooled"].shape == (7, 16)
    features = classifier.encoder.projection(torch.from_numpy(outputs["pooled"])).detach()
    np.testing.assert_allclose(outputs["features"], features, rtol=1e-5, atol=1e-6)
    assert "pooled" not in run_graph(eager(classifier, torch.device("cpu")), images)
    assert not classifier.encoder.projection._forward_pre_hooks
