"""Statistics of mixture components, judged by cases worked by hand, SciPy and scikit-learn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from training_samples import digits, small_recipe

from training.analysis.components import (
    bic_by_components,
    component_figures,
    entropy_of,
    refit_spec,
    repeatability,
    stability,
    usage,
)
from training.analysis.evidence import Evidence, answers_of, gather, log_joints_of_features, stratified
from training.components import assignments, of_class
from training.data import Sources
from training.heads import lda_head, mda_head
from training.refit import choose_components, fit_head
from training.refit_spec import RefitSpec
from training.run import Run
from training.train import train

FloatArray = NDArray[np.float64]
CPU = torch.device("cpu")
SPEC = RefitSpec(features="output", components=2, covariance="full")


def two_classes(seed: int = 0) -> tuple[FloatArray, NDArray[np.int64]]:
    """Features (1200, 2) of two classes: two Gaussians each, 12 and more apart, of weights 1/3 and 2/3."""
    rng = np.random.default_rng(seed)
    means = [(0, 0), (12, 0), (0, 15), (12, 18)]
    parts = [rng.normal(mean, 1.0, (count, 2)) for mean, count in zip(means, (200, 400) * 2, strict=True)]
    return np.concatenate(parts), np.repeat([0, 1], 600)


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A tiny run whose mixture head was trained by gradient, on few digits."""
    recipe = small_recipe(head={"kind": "mda", "components": 2}, loss={"kind": "em-dnll", "weight": 0.1})
    run = Run.create("gradient", recipe, "a", tmp_path_factory.mktemp("runs"))
    train(run, Sources(), CPU)
    return gather(run, Sources(), CPU, sample=1000)


# Entropy and occupancy


def test_entropy_is_that_of_scipy() -> None:
    shares = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3]])

    np.testing.assert_allclose(entropy_of(shares), scipy_entropy(shares, axis=1), atol=1e-12)


def test_usage_is_one_where_components_are_used_alike_and_zero_where_one_takes_all() -> None:
    """Class 0: images to components 0 and 1 in turn; class 1: all three to component 1."""
    labels = np.array([0, 0, 1, 1, 1])
    responsibilities = np.full((5, 2, 2), 0.5)
    for image, component in enumerate([0, 1, 1, 1, 1]):
        responsibilities[image, labels[image]] = [0.1, 0.1]
        responsibilities[image, labels[image], component] = 0.9

    figures = usage(responsibilities, labels)

    assert figures == {
        "occupancy": [[0.5, 0.5], [0.0, 1.0]],
        "entropy": [round(math.log(2), 4), 0.0],
        "normalised_entropy": [1.0, 0.0],
        "mean_normalised_entropy": 0.5,
    }


# Repeatability and stability


def test_clusters_far_apart_are_found_anew_from_every_start_and_in_every_sample() -> None:
    features, labels = two_classes()
    alike = {"adjusted_rand_per_class": [1.0, 1.0], "adjusted_rand": 1.0}

    assert repeatability(features, labels, 2, SPEC) == {"seeds": [0, 1, 2], **alike}
    assert stability(features, labels, 2, SPEC, seed=0) == {"bootstrap_samples": 5, **alike}


def test_cutting_up_a_single_cluster_is_not_repeatable() -> None:
    """Nothing says how a round cloud is cut in five; class 1 still has its two clusters but five components."""
    rng = np.random.default_rng(3)
    features = np.concatenate([rng.normal(size=(300, 2)), two_classes()[0][:600]])
    spec = SPEC.model_copy(update={"components": 5, "restarts": 1})

    figures = repeatability(features, np.repeat([0, 1], [300, 600]), 2, spec)

    assert figures["adjusted_rand_per_class"][0] < 0.8
    assert figures["adjusted_rand"] == pytest.approx(np.mean(figures["adjusted_rand_per_class"]), abs=1e-4)


def test_a_cut_that_every_start_repeats_may_be_another_in_another_sample() -> None:
    """A round cloud cut in two: with many restarts the same cut is found again, but only for these very images."""
    features, labels = np.random.default_rng(2).normal(size=(150, 2)), np.zeros(150, np.int64)
    spec = SPEC.model_copy(update={"restarts": 20})

    of_starts, of_samples = repeatability(features, labels, 1, spec), stability(features, labels, 1, spec, seed=0)

    assert of_starts["adjusted_rand"] > of_samples["adjusted_rand"] + 0.3


def test_stability_is_that_of_scikit_learns_mixtures_of_bootstrap_samples() -> None:
    features = np.random.default_rng(5).normal(size=(80, 2)) * [3, 1]
    settings = {"init_params": "k-means++", "n_init": SPEC.restarts, "max_iter": 500, "random_state": 7}
    assigned = []
    for number in range(3):
        drawn = features[np.random.default_rng((7, number)).choice(80, 80)]
        ridge = SPEC.ridge * drawn.var(0).mean()
        assigned.append(GaussianMixture(2, reg_covar=ridge, **settings).fit(drawn).predict(features))
    expected = np.mean([adjusted_rand_score(assigned[a], assigned[b]) for a, b in ((0, 1), (0, 2), (1, 2))])

    figures = stability(features, np.zeros(80, np.int64), 1, SPEC, seed=7, samples=3)

    assert figures["adjusted_rand"] == pytest.approx(expected, abs=0.02)


def test_stability_is_the_same_again_and_another_with_another_seed() -> None:
    features, labels = np.random.default_rng(1).normal(size=(120, 2)), np.repeat([0, 1], 60)

    first, again, other = (stability(features, labels, 2, SPEC, seed, samples=2) for seed in (0, 0, 1))

    assert first == again
    assert first != other


def test_assignments_are_those_of_scikit_learns_mixtures() -> None:
    features, labels = two_classes()
    head = fit_head(features, labels, 2, SPEC, seed=0)
    ridge = SPEC.ridge * features.var(0).mean()

    for label in range(2):
        points = features[labels == label]
        reference = GaussianMixture(
            2, init_params="k-means++", n_init=SPEC.restarts, max_iter=500, reg_covar=ridge, random_state=0
        ).fit(points)

        np.testing.assert_array_equal(assignments(head, features, labels)[labels == label], reference.predict(points))
        density = np.logaddexp.reduce(of_class(head, points, label), axis=1)
        np.testing.assert_allclose(density, reference.score_samples(points), rtol=1e-4)


@pytest.mark.parametrize("covariance", ["spherical", "diagonal", "full"])
def test_density_of_a_class_is_the_heads_less_its_prior(covariance: str) -> None:
    torch.manual_seed(0)
    features = torch.randn(6, 3)

    for head in (lda_head(4, 3, covariance), mda_head(4, 3, 2, covariance)):
        with torch.no_grad():
            head.prior_logits.normal_()
            head.weight_logits.normal_()
            expected = head(features).log_joints[:, 2] - head.prior_logits.log_softmax(0)[2] + head.log_density_constant
        density = np.logaddexp.reduce(of_class(head, features.double().numpy(), 2), axis=1)

        np.testing.assert_allclose(density, expected, rtol=1e-5)


# BIC


@pytest.mark.parametrize("covariance", ["spherical", "diagonal", "full"])
def test_bic_is_that_of_scikit_learn_summed_over_classes(covariance: str) -> None:
    features, labels = two_classes()
    spec = SPEC.model_copy(update={"covariance": covariance, "max_components": 3})
    ridge = spec.ridge * features.var(0).mean()
    kind = {"diagonal": "diag"}.get(covariance, covariance)
    by_class = [features[labels == c] for c in range(2)]
    settings = {"init_params": "k-means++", "n_init": spec.restarts, "max_iter": 500, "reg_covar": ridge}
    expected = [
        sum(GaussianMixture(k, covariance_type=kind, random_state=4, **settings).fit(p).bic(p) for p in by_class)
        for k in (1, 2, 3)
    ]

    bic = bic_by_components(features, labels, 2, spec, seed=4)

    assert bic["components"] == [1, 2, 3]
    np.testing.assert_allclose(bic["value"], expected, rtol=1e-4)
    assert bic["least"] == choose_components(by_class, spec, 4, by_class[0].shape[1]) == 2


def test_bic_tries_no_more_components_than_the_images_allow() -> None:
    features, labels = two_classes()
    few = np.concatenate([np.flatnonzero(labels == c)[[0, 1, -1, -2]] for c in range(2)])

    bic = bic_by_components(features[few], labels[few], 2, SPEC.model_copy(update={"covariance": "spherical"}), 0)

    assert bic["components"] == [1, 2, 3]


# A whole run


def test_head_trained_by_gradient_is_compared_with_its_refit(collapsed: Evidence) -> None:
    figures = component_figures(collapsed)

    assert figures is not None
    assert (figures["components"], figures["fitted_by"], figures["covariance"]) == (2, "gradient", "spherical")
    assert figures["images"] == len(collapsed.train.labels)
    head = fit_head(
        collapsed.train.features, collapsed.train.labels, 10, refit_spec(collapsed.classifier.head, None), 0
    )
    scores = head(torch.from_numpy(collapsed.test.features).float())
    right = scores.log_joints.argmax(1).numpy() == collapsed.test.labels
    assert figures["refit"]["accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    trained = collapsed.test.outputs["posterior"].argmax(1) == collapsed.test.labels
    assert figures["refit"]["accuracy_as_trained"] == pytest.approx(trained.mean(), abs=1e-6)
    assert figures["refit"]["mean_normalised_entropy"] > figures["test"]["mean_normalised_entropy"]
    np.testing.assert_allclose(np.sum(figures["refit"]["occupancy"], axis=1), 1, atol=1e-3)


def test_refit_heads_are_refitted_as_their_recipe_says() -> None:
    spec = RefitSpec(dim=4, components="bic", covariance="diagonal", ridge=0.02)

    chosen = refit_spec(mda_head(3, 4, 2), spec)

    assert (chosen.components, chosen.covariance, chosen.ridge) == (2, "diagonal", 0.02)
    assert (chosen.features, chosen.dim) == ("output", None)


def test_one_component_has_no_figures(collapsed: Evidence) -> None:
    trained = collapsed.classifier
    single = type(trained)(trained.architecture, trained.encoder, lda_head(10, 3))

    assert component_figures(replace(collapsed, classifier=single)) is None


# The evidence


def test_sample_keeps_the_classes_shares_and_small_classes_whole() -> None:
    labels = np.repeat([0, 1, 2], [4000, 1000, 30])

    chosen = stratified(labels, 1000, seed=1)

    counts = np.bincount(labels[chosen])
    assert counts.tolist() == [795, 199, 30]
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, stratified(labels, 1000, seed=1))
    assert not np.array_equal(chosen, stratified(labels, 1000, seed=2))


def test_large_sample_is_everything() -> None:
    np.testing.assert_array_equal(stratified(np.zeros(7, np.int64), 7, seed=0), np.arange(7))


def test_sample_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^sample must be at least 1, got 0$"):
        stratified(np.zeros(7, np.int64), 0, seed=0)


def test_evidence_is_what_the_classifier_says_of_its_splits(collapsed: Evidence) -> None:
    classifier = collapsed.run.load_classifier()
    answers = answers_of(classifier, digits().images[:20], digits().labels[:20], digits().input, CPU)
    scores = classifier(digits().images[:20])

    np.testing.assert_allclose(answers.features, scores.features.detach(), atol=1e-6)
    log_joints = log_joints_of_features(classifier, answers.features)
    np.testing.assert_allclose(log_joints, scores.log_joints.detach(), rtol=1e-4, atol=1e-4)
    assert len(collapsed.test.labels) == 1797
    assert np.bincount(collapsed.train.labels).min() >= 90
