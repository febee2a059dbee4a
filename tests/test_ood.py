"""Out-of-distribution scores, judged by cases worked by hand, torch.distributions and scikit-learn."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from training_samples import digits, small_recipe

from serving.bundle import InputSpec
from training.analysis import ood
from training.analysis.evidence import Evidence, gather
from training.analysis.linear import linear_readout, pixel_templates
from training.analysis.ood import (
    energy,
    false_positive_rate,
    fit_relative_mahalanobis,
    ood_figures,
    ood_of,
    relative_mahalanobis,
    separation,
)
from training.classifier import Architecture, build_classifier
from training.data import DataError, Dataset, Sources
from training.heads import LinearHead, lda_head, mda_head
from training.recipe import EncoderSpec, HeadSpec
from training.run import Run
from training.train import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """A tiny run on digits; its data set is then called mnist, so that it has strangers."""
    run = Run.create("small", small_recipe(), "a", tmp_path_factory.mktemp("runs"))
    train(run, Sources(), CPU)
    gathered = gather(run, Sources(), CPU, sample=1500)
    return replace(gathered, dataset=replace(gathered.dataset, name="mnist"))


def inverted(spec: object, sources: Sources) -> Dataset:
    """Digits white on black become black on white; the last 100 are the test split."""
    return replace(digits(), images=255 - digits().images, name="fashion-mnist", test_start=len(digits().labels) - 100)


# Separation


def test_separation_of_five_scores_by_hand() -> None:
    """Of six pairs, strangers' 2.5 is above the known 2 and 0.5 below all: AUROC 5/6."""
    figures = separation(np.array([2.0, 3.0, 4.0]), np.array([2.5, 0.5]))

    assert (figures["auroc"], figures["fpr_at_95_tpr"]) == (round(5 / 6, 6), 0.5)  # all three known are accepted at 2
    assert figures["auroc_interval"][0] < 5 / 6 < figures["auroc_interval"][1]


def test_threshold_accepts_95_of_100() -> None:
    """The known score 1 to 100: 95 of them reach 6. Of the strangers 5.9, 6, 7 and 200, three do."""
    assert false_positive_rate(np.arange(1.0, 101.0), np.array([5.9, 6.0, 7.0, 200.0])) == 0.75


def test_scores_that_tell_nothing_are_chance() -> None:
    figures = separation(np.zeros(10), np.zeros(7))

    assert figures == {"auroc": 0.5, "auroc_interval": (0.5, 0.5), "fpr_at_95_tpr": 1.0}


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^scores must be finite, got nan$"):
        separation(np.array([1.0, np.nan]), np.array([0.0]))


# Scores


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


# The linear read-out


@pytest.mark.parametrize("covariance", ["spherical", "diagonal", "full"])
def test_linear_readout_of_lda_has_its_posterior(covariance: str) -> None:
    torch.manual_seed(1)
    head = lda_head(4, 3, covariance)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    features = torch.randn(9, 3)
    readout = linear_readout(head)
    assert readout is not None

    logits = torch.from_numpy(features.double().numpy() @ readout[0].T + readout[1])

    np.testing.assert_allclose(logits.softmax(1), head(features).log_joints.softmax(1).detach(), atol=1e-6)


def test_linear_readout_of_lda_does_not_depend_on_the_origin() -> None:
    torch.manual_seed(2)
    head, moved, shift = lda_head(3, 2), lda_head(3, 2), torch.tensor([5.0, -7.0])
    moved.load_state_dict(head.state_dict())
    with torch.no_grad():
        moved.gaussians.means += shift
    features = torch.randn(6, 2)
    here, there = linear_readout(head), linear_readout(moved)
    assert here is not None
    assert there is not None

    first = features.double().numpy() @ here[0].T + here[1]
    second = (features + shift).double().numpy() @ there[0].T + there[1]

    np.testing.assert_allclose(first, second, atol=1e-5)


def test_linear_heads_are_their_own_readout_and_mixtures_have_none() -> None:
    torch.manual_seed(0)
    head, features = LinearHead("svm", 3, 2), torch.randn(5, 2)
    readout = linear_readout(head)
    assert readout is not None

    np.testing.assert_allclose(
        features.numpy() @ readout[0].T + readout[1], head(features).log_joints.detach(), rtol=1e-5
    )
    assert linear_readout(mda_head(3, 2, 1)) is None
    assert linear_readout(mda_head(3, 2, 2)) is None


@pytest.mark.parametrize("encoder", [{"kind": "linear", "dim": 5}, {"kind": "linear"}, {"kind": "none", "dim": 64}])
@pytest.mark.parametrize("head", ["softmax", "lda"])
def test_templates_are_the_gradient_of_the_logits(encoder: dict, head: str) -> None:
    torch.manual_seed(0)
    architecture = Architecture((1, 8, 8), 10, EncoderSpec(**encoder), HeadSpec(kind=head))
    classifier = build_classifier(architecture)
    classifier.learn_normalisation(digits().images)
    templates, readout = pixel_templates(classifier), linear_readout(classifier.head)
    assert templates is not None
    assert readout is not None

    pixels = digits().images[:1].float().requires_grad_()
    features = classifier.encoder((pixels - classifier.mean) / classifier.std)
    logit = features @ torch.from_numpy(readout[0][7]).float()
    (gradient,) = torch.autograd.grad(logit.sum(), pixels)

    np.testing.assert_allclose(templates[7], gradient[0], rtol=1e-3, atol=1e-6)


def test_networks_that_are_not_linear_have_no_templates() -> None:
    architecture = Architecture((1, 8, 8), 10, EncoderSpec(dim=3, width=4), HeadSpec(kind="softmax"))

    assert pixel_templates(build_classifier(architecture)) is None


# A whole run


def test_strangers_to_a_network_are_scored(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ood, "load_dataset", inverted)

    figures = ood_of(evidence, Sources(), CPU)

    assert (figures["known"], figures["strangers"]) == ("mnist", "fashion-mnist")
    assert (figures["known_images"], figures["stranger_images"]) == (1797, 100)
    assert list(figures["scores"]) == ["log_density", "max_probability", "energy", "relative_mahalanobis"]
    for score in figures["scores"].values():
        assert 0 <= score["auroc_interval"][0] <= score["auroc"] <= score["auroc_interval"][1] <= 1
        assert 0 <= score["fpr_at_95_tpr"] <= 1
    assert figures["omitted"] == {}


def test_max_probability_and_log_density_are_what_is_served(evidence: Evidence) -> None:
    fitted = fit_relative_mahalanobis(evidence.train.features, evidence.train.labels)

    scores = ood.scores_of(evidence, evidence.test, fitted)

    np.testing.assert_array_equal(scores["max_probability"], evidence.test.outputs["posterior"].max(1))
    np.testing.assert_array_equal(scores["log_density"], evidence.test.outputs["log_density"])


def test_energy_of_a_mixture_is_of_its_log_joints_at_the_served_temperature(evidence: Evidence) -> None:
    classifier = type(evidence.classifier)(
        evidence.classifier.architecture, evidence.classifier.encoder, mda_head(10, 3, 2)
    )
    features = torch.from_numpy(evidence.test.features).float()
    with torch.no_grad():
        log_joints = classifier.head(features).log_joints.double()
    fitted = fit_relative_mahalanobis(evidence.train.features, evidence.train.labels)

    for temperature in (1.0, 7.0):
        classifier.temperature = temperature
        scores = ood.scores_of(replace(evidence, classifier=classifier), evidence.test, fitted)

        np.testing.assert_allclose(scores["energy"], (log_joints / temperature).logsumexp(1), rtol=1e-6)


def test_missing_scores_have_a_reason(evidence: Evidence) -> None:
    classifier = evidence.classifier
    with_softmax = type(classifier)(classifier.architecture, classifier.encoder, LinearHead("softmax", 10, 3))

    assert ood.omitted(evidence) == {}
    assert ood.omitted(replace(evidence, classifier=with_softmax)) == {"log_density": "a softmax head has no density"}


def test_data_sets_without_strangers_are_named(evidence: Evidence) -> None:
    message = "data set must be one of mnist, fashion-mnist, cifar10, cifar100 to have strangers of the same shape, "

    with pytest.raises(DataError, match=f"^{re.escape(message)}got digits$"):
        ood_figures(evidence.run, Sources(), CPU)


def test_strangers_of_another_shape_are_refused(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    large = InputSpec.model_validate({"channels": 1, "height": 28, "width": 28})
    other = Dataset(
        "fashion-mnist", torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.zeros(4).long(), ("a",), large, 0
    )
    monkeypatch.setattr(ood, "load_dataset", lambda spec, sources: other)

    with pytest.raises(
        DataError, match=r"^strangers must have images of 1x8x8 as mnist has, got 1x28x28 in fashion-mnist$"
    ):
        ood_of(evidence, Sources(), CPU)


def test_strangers_that_are_not_there_are_an_error(
    evidence: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(kind: type, name: str, root: Path) -> list[object]:
        raise DataError(f"{name} must lie in {root}")

    monkeypatch.setattr("training.datasets._download", absent)

    with pytest.raises(DataError, match=rf"^fashion-mnist must lie in {tmp_path}$"):
        ood_of(evidence, Sources(tmp_path), CPU)
