"""Biases a class: they undo what is named too often, and are left out where nothing is."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax

from training.calibrate import calibrate_by
from training.class_biases import WIDTH, find_biases, fit_biases
from training.classifier import Architecture, build_classifier
from training.recipe import EncoderSpec, HeadSpec


def judged(count: int, biases: tuple[float, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-joints that lack `biases`, with labels drawn by the posterior that has them."""
    generator = np.random.default_rng(seed)
    log_joints = 2 * generator.standard_normal((count, len(biases)))
    posterior = np.exp(log_softmax(log_joints + np.array(biases), axis=1))
    labels = [generator.choice(len(biases), p=row) for row in posterior]
    return torch.from_numpy(log_joints), torch.tensor(labels)


def folds(count: int) -> torch.Tensor:
    return torch.arange(count) % 5


def test_biases_are_found_that_classes_lack() -> None:
    log_joints, labels = judged(4000, (0.5, -0.5, 0.0))

    found = find_biases(log_joints, labels, fold=folds(4000))

    assert found.helps
    np.testing.assert_allclose(found.biases, (0.5, -0.5, 0.0), atol=0.1)
    assert sum(found.biases) == pytest.approx(0, abs=1e-3)
    assert found.nll_cross_fitted < found.nll_without


def test_biases_that_are_noise_are_left_out() -> None:
    log_joints, labels = judged(300, (0.0, 0.0, 0.0))

    found = find_biases(log_joints, labels, fold=folds(len(labels)))

    assert not found.helps
    assert found.biases == (0.0, 0.0, 0.0)


def test_fitted_biases_are_the_likeliest_under_the_prior() -> None:
    log_joints, labels = judged(200, (1.0, -1.0))
    scaled, truth = log_joints.numpy(), labels.numpy()

    found = fit_biases(scaled, truth)

    def cost(half: np.ndarray) -> float:
        moved = scaled + np.array([half[0], -half[0]])
        return float(-log_softmax(moved, axis=1)[np.arange(200), truth].sum() + (half[0] / WIDTH) ** 2)

    expected = minimize(cost, [0.0], method="Nelder-Mead", options={"xatol": 1e-6}).x[0]
    np.testing.assert_allclose(found, (expected, -expected), atol=1e-4)


def test_few_images_move_biases_little() -> None:
    log_joints, labels = torch.zeros(3, 3), torch.tensor([0, 0, 0])

    found = find_biases(log_joints, labels, fold=folds(len(labels)))

    assert max(map(abs, found.fitted)) < 0.3


def test_classifier_gets_a_temperature_and_the_biases_beside_it() -> None:
    log_joints, labels = judged(4000, (0.5, -0.5, 0.0))
    classifier = build_classifier(Architecture((1, 8, 8), 3, EncoderSpec(dim=3, width=4), HeadSpec(kind="lda")))

    calibrate_by(classifier, 3 * log_joints, labels, seed=0)

    expected = (log_joints + torch.tensor([0.5, -0.5, 0.0])).softmax(1)
    torch.testing.assert_close(classifier.calibrated(3 * log_joints).softmax(1), expected, atol=0.05, rtol=0)
    of_classes = classifier.calibration["class_biases"]
    assert of_classes["why"].startswith("kept: over 5 folds of 4,000 images, the NLL of others goes from ")
    torch.testing.assert_close(classifier.class_biases, torch.tensor(of_classes["fitted"]))
