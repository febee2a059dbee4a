"""Scores of familiarity, judged by cases worked by hand, by torch and by scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors
from training_samples import small_recipe

from training.analysis.evidence import Evidence, gather
from training.analysis.familiarity import (
    energy,
    fit_relative_mahalanobis,
    fit_scores,
    fit_vim,
    knn,
    normalised,
    omitted,
    principal_dim,
    relative_mahalanobis,
    residual_norm,
    scores_of,
    zero_of,
)
from training.classifier import Architecture, build_classifier
from training.data import Sources
from training.heads import LinearHead, mda_head
from training.recipe import EncoderSpec, HeadSpec
from training.run import Run
from training.train import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A tiny run on digits."""
    run = Run.create("small", small_recipe(), "a", tmp_path_factory.mktemp("runs"))
    train(run, Sources(), CPU)
    return gather(run, Sources(), CPU, sample=1500)


def test_energy_is_the_logsumexp_of_the_logits() -> None:
    logits = np.array([[0.0, 0.0], [1.0, 3.0], [700.0, 710.0]])

    np.testing.assert_allclose(energy(logits), torch.from_numpy(logits).logsumexp(1))


def test_relative_mahalanobis_by_hand() -> None:
    """Classes at -2 and 2 with variance 1 in common; everything has mean 0 and variance 1 + 4.

    At z = 3 the nearest class is at distance 1 and the background at 9 / 5.
    """
    features = np.array([[-3.0], [-1.0], [1.0], [3.0]])
    fitted = fit_relative_mahalanobis(features, np.array([0, 0, 1, 1]))

    scores = relative_mahalanobis(np.array([[3.0], [0.0]]), fitted)

    np.testing.assert_allclose(scores, [9 / 5 - 1, 0 - 4], rtol=1e-4)


def test_relative_mahalanobis_is_the_ratio_of_gaussians_that_scikit_learn_fits() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [50, 80, 120])
    features = rng.normal(size=(250, 3)) @ rng.normal(size=(3, 3)) + 2 * rng.normal(size=(3, 3))[labels]
    means = np.stack([features[labels == c].mean(0) for c in range(3)])
    tied = EmpiricalCovariance(assume_centered=True).fit(features - means[labels])
    whole = EmpiricalCovariance().fit(features)
    points = rng.normal(size=(20, 3))

    scores = relative_mahalanobis(points, fit_relative_mahalanobis(features, labels))

    nearest = np.min([tied.mahalanobis(points - mean) for mean in means], axis=0)
    np.testing.assert_allclose(scores, whole.mahalanobis(points) - nearest, rtol=1e-3, atol=1e-4)


def test_residual_of_vim_by_hand() -> None:
    """Of four directions the two of less variance are the last: 3 and 4 there make 5; alpha is 10 / 5."""
    pooled = np.array([[9.0, 0, 3, 4], [-9, 0, 3, 4], [0, 8, -3, 4], [0, -8, -3, 4]])
    logits = np.array([[10.0, 1], [2, 10], [10, -3], [10, 0]])

    fitted = fit_vim(pooled, logits, np.zeros(4))

    np.testing.assert_allclose(residual_norm(pooled, fitted), 5)
    np.testing.assert_allclose(residual_norm(np.array([[7.0, -7, 0, 2]]), fitted), 2)
    assert fitted.alpha == pytest.approx(2)


def test_vim_takes_off_for_what_is_outside_where_logits_are_negative_too() -> None:
    pooled, logits = np.random.default_rng(0).normal(size=(50, 4)), np.full((50, 3), -2.0)

    assert fit_vim(pooled, logits, None).alpha == fit_vim(pooled, -logits, None).alpha > 0


def test_vim_is_about_the_mean_without_an_origin_and_of_nothing_in_one_direction() -> None:
    pooled = np.array([[1.0], [3.0]])

    assert fit_vim(pooled, np.ones((2, 2)), None).origin == 2
    assert fit_vim(np.array([[1.0, 0], [1, 0]]), np.ones((2, 2)), None).alpha == 0


@pytest.mark.parametrize(("pooled", "principal"), [(16, 8), (767, 383), (768, 512), (1280, 512), (2048, 1000)])
def test_principal_directions_are_as_many_as_the_authors_take(pooled: int, principal: int) -> None:
    assert principal_dim(pooled) == principal


def test_knn_is_the_distance_that_scikit_learn_finds() -> None:
    rng = np.random.default_rng(0)
    train, points = rng.normal(size=(300, 6)), rng.normal(size=(40, 6))

    found = knn(points, normalised(train), 50)

    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, points)]
    distances, _ = NearestNeighbors(n_neighbors=50).fit(unit[0]).kneighbors(unit[1])
    np.testing.assert_allclose(found, -distances[:, -1], atol=1e-5)


def test_knn_of_few_images_is_the_farthest_and_of_zeros_is_a_number() -> None:
    found = knn(np.array([[2.0, 0], [0, 0]]), normalised(np.array([[1.0, 0], [0, 3]])))

    np.testing.assert_allclose(found, [-np.sqrt(2), -1], atol=1e-6)


@pytest.mark.parametrize("dim", [None, 12])
def test_logits_are_zero_where_vim_has_its_origin(dim: int | None) -> None:
    torch.manual_seed(0)
    architecture = Architecture((1, 8, 8), 5, EncoderSpec(dim=dim, width=4), HeadSpec(kind="softmax"))
    classifier = build_classifier(architecture).eval()

    origin = zero_of(classifier)

    assert origin is not None
    with torch.no_grad():
        logits = classifier.head(classifier.encoder.projection(torch.from_numpy(origin)[None].float())).log_joints
    np.testing.assert_allclose(logits, 0, atol=1e-5)


def test_heads_without_linear_logits_have_no_such_origin() -> None:
    architecture = Architecture((1, 8, 8), 5, EncoderSpec(dim=3, width=4), HeadSpec(kind="mda", components=2))

    assert zero_of(build_classifier(architecture)) is None


def test_max_probability_and_log_density_are_what_is_served(evidence: Evidence) -> None:
    scores = scores_of(evidence, evidence.test, fit_scores(evidence))

    assert list(scores) == ["log_density", "max_probability", "energy", "relative_mahalanobis", "vim", "knn"]
    np.testing.assert_array_equal(scores["max_probability"], evidence.test.outputs["posterior"].max(1))
    np.testing.assert_array_equal(scores["log_density"], evidence.test.outputs["log_density"])


def test_typicality_is_a_score_where_it_is_served(evidence: Evidence) -> None:
    outputs = evidence.test.outputs | {"typicality_score": np.arange(1797, dtype=np.float32)}

    scores = scores_of(evidence, replace(evidence.test, outputs=outputs), fit_scores(evidence))

    np.testing.assert_array_equal(scores["typicality_score"], np.arange(1797))


def test_vim_takes_as_much_as_the_logits_give_on_training_images(evidence: Evidence) -> None:
    fitted = fit_scores(evidence)

    norms = residual_norm(evidence.train.pooled, fitted.vim)

    train = scores_of(evidence, evidence.train, fitted)
    np.testing.assert_allclose(train["vim"], train["energy"] - fitted.vim.alpha * norms)
    assert fitted.vim.minor.shape == (16, 8)


def test_energy_of_a_mixture_is_of_its_log_joints_at_the_served_temperature(evidence: Evidence) -> None:
    classifier = type(evidence.classifier)(
        evidence.classifier.architecture, evidence.classifier.encoder, mda_head(10, 3, 2)
    )
    features = torch.from_numpy(evidence.test.features).float()
    with torch.no_grad():
        log_joints = classifier.head(features).log_joints.double()

    for temperature in (1.0, 7.0):
        classifier.temperature = temperature
        mixture = replace(evidence, classifier=classifier)
        scores = scores_of(mixture, evidence.test, fit_scores(mixture))

        np.testing.assert_allclose(scores["energy"], (log_joints / temperature).logsumexp(1), rtol=1e-6)


def test_missing_scores_have_a_reason(evidence: Evidence) -> None:
    classifier = evidence.classifier
    with_softmax = type(classifier)(classifier.architecture, classifier.encoder, LinearHead("softmax", 10, 3))
    outputs = {name: out for name, out in evidence.test.outputs.items() if name != "log_density"}
    of_softmax = replace(evidence, classifier=with_softmax, test=replace(evidence.test, outputs=outputs))
    served = evidence.test.outputs | {"typicality_score": np.zeros(1797)}

    no_images = {"typicality_score": "the recipe holds no images out"}
    assert omitted(evidence) == no_images
    assert omitted(of_softmax) == {"log_density": "a softmax head has no density"} | no_images
    assert omitted(replace(evidence, test=replace(evidence.test, outputs=served))) == {}
