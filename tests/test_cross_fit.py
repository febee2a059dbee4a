"""Heads judged on images that they were fitted without, by scikit-learn's LDA and by known mixtures."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.covariance import LedoitWolf, ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.mixture import GaussianMixture
from torch import nn

from training.calibrate import cross_fitted_nll, fit_temperature
from training.classifier import Architecture, Classifier
from training.covariances import ledoit_wolf as shrinkage_of
from training.covariances import of_kind, pooled_covariance
from training.cross_fit import cross_fit, folds_of_classes, judge
from training.encoders import Encoder
from training.heads import build_head
from training.mixtures import bic, fit_mixtures, log_densities
from training.principal import Rows, moments_of, principal_components, project
from training.recipe import EncoderSpec, HeadSpec, Recipe, parse_recipe
from training.refit import fit_head, most_components, refit
from training.refit_spec import RefitSpec
from training.typicality import Scale, score
from training.typicality_fit import Evidence, fit_parts, measured

FloatArray = NDArray[np.float64]


def stage(dim: int, classes: int) -> Classifier:
    """A classifier of features (N, P, 1, 1)."""
    head = HeadSpec(kind="lda")
    architecture = Architecture((dim, 1, 1), classes, EncoderSpec(kind="linear"), head)
    return Classifier(architecture, Encoder(nn.Flatten(), nn.Identity()), build_head(head, classes, dim))


def blobs(per_class: int, dim: int = 12, classes: int = 3, kinds: int = 1, seed: int = 0) -> tuple[FloatArray, NDArray]:
    """Features with an uneven covariance that all share; each class has `kinds` means, far apart."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    means = 3 * rng.normal(size=(classes, kinds, dim))
    noise = rng.normal(size=(len(labels), dim)) @ np.diag(np.geomspace(1.0, 0.05, dim))
    return means[labels, np.arange(len(labels)) % kinds] + noise, labels


def as_images(features: FloatArray) -> torch.Tensor:
    return torch.from_numpy(features).float()[:, :, None, None]


# Shrinkage


@pytest.mark.parametrize("count", [5, 40, 4000])
def test_shrinkage_is_scikit_learns(count: int) -> None:
    deviations = blobs(count, classes=1)[0]
    deviations -= deviations.mean(0)
    expected, share = ledoit_wolf(deviations, assume_centered=True)
    scatter, fourth = deviations.T @ deviations / count, float(np.square(np.square(deviations).sum(1)).sum())
    spec = RefitSpec(head="lda", features="output", shrinkage="ledoit-wolf")

    assert shrinkage_of(scatter, fourth, count, 12) == pytest.approx(share, rel=1e-9)
    np.testing.assert_allclose(of_kind(scatter, fourth, count, spec, 0.0, 12)[0], expected, rtol=1e-9)


def test_a_named_share_of_the_identity_is_taken() -> None:
    features = [blobs(30, classes=1)[0]]
    plain, half, whole = (
        pooled_covariance(features, RefitSpec(head="lda", features="output", shrinkage=share), 0.0, 12)[0]
        for share in (0.0, 0.5, 1.0)
    )

    np.testing.assert_allclose(whole, np.trace(plain) / 12 * np.eye(12), rtol=1e-9)
    np.testing.assert_allclose(half, (plain + whole) / 2, rtol=1e-9)


def test_covariance_of_principal_components_is_shrunk_as_that_of_all_features() -> None:
    """Eleven images span ten directions: LDA there decides as LDA on all 40 features does."""
    features, labels = blobs(4, dim=40)
    features, new = features[:11], blobs(50, dim=40)[0]
    labels = labels[:11]
    spec = RefitSpec(head="lda", dim=10, shrinkage="ledoit-wolf", ridge=1e-9)
    residuals = features - np.stack([features[labels == c].mean(0) for c in range(3)])[labels]
    covariance, _ = ledoit_wolf(residuals, assume_centered=True)
    means = np.stack([features[labels == c].mean(0) for c in range(3)])
    weights = np.linalg.solve(covariance, means.T)
    expected = new @ weights - 0.5 * (means.T * weights).sum(0) + np.log(np.bincount(labels) / 11)

    refitted = refit(stage(40, 3), spec, as_images(features), torch.from_numpy(labels), seed=0)
    joints = refitted.double()(as_images(new).double()).log_joints.detach()

    assert refitted.architecture.encoder.dim == 10
    torch.testing.assert_close(joints.log_softmax(1), torch.from_numpy(expected).log_softmax(1), rtol=1e-3, atol=1e-3)


# Tied mixtures


def test_tied_mixture_of_one_class_is_scikit_learns() -> None:
    points, _ = blobs(400, dim=4, classes=1, kinds=3)
    spec = RefitSpec(features="output", components=3, tied=True, ridge=1e-9)
    reference = GaussianMixture(3, covariance_type="tied", n_init=3, random_state=0, tol=1e-6, reg_covar=0).fit(points)

    found = fit_mixtures([points], 3, spec, 0, 0.0, 4)

    order, expected = np.argsort(found.means[0, :, 0]), np.argsort(reference.means_[:, 0])
    np.testing.assert_allclose(found.means[0, order], reference.means_[expected], atol=1e-3)
    np.testing.assert_allclose(found.covariances[0], reference.covariances_, rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(
        np.logaddexp.reduce(log_densities(found, [points])[0], axis=1), reference.score_samples(points), atol=1e-2
    )


@pytest.mark.parametrize("covariance", ["spherical", "diagonal", "full"])
def test_tied_head_scores_as_its_mixtures_do(covariance: str) -> None:
    features, labels = blobs(60, dim=5, kinds=2)
    spec = RefitSpec(features="output", components=2, tied=True, covariance=covariance)
    by_class = [features[labels == c] for c in range(3)]
    mixtures = fit_mixtures(by_class, 2, spec, 0, spec.ridge * features.var(0).mean(), 5)

    head = fit_head(features, labels, 3, spec, seed=0).double()

    scores = head(torch.from_numpy(features)).component_log_joints.detach().numpy() + head.log_density_constant
    own = np.concatenate([scores[labels == c, c] for c in range(3)])
    np.testing.assert_allclose(own - np.log(1 / 3), np.concatenate(log_densities(mixtures, by_class)), atol=1e-3)
    assert len(head.gaussians.cholesky()) == 1


def test_bic_of_a_single_gaussian_by_hand() -> None:
    points = blobs(50, dim=3, classes=1)[0]
    spec = RefitSpec(features="output", components=1)
    covariance = np.cov(points.T, bias=True)
    fit = -0.5 * 50 * (3 * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + 3)

    found = bic(fit_mixtures([points], 1, spec, 0, 1e-12, 3), [points])

    assert found == pytest.approx(-2 * fit + (3 + 6) * np.log(50), rel=1e-6)


def test_tied_components_have_five_images_each_on_average() -> None:
    spec = RefitSpec(features="output", components="bic", tied=True)

    assert [most_components(spec, fewest) for fewest in (4, 9, 10, 24, 1000)] == [1, 1, 2, 4, 5]


# Principal components


def test_principal_components_of_batches_are_scikit_learns() -> None:
    features = blobs(2000, dim=20)[0]
    rows = Rows(features, np.arange(len(features)))
    reference = PCA(4).fit(features)

    found = project(rows, principal_components(moments_of(rows), 4))

    expected = reference.transform(features)
    np.testing.assert_allclose(found * np.sign((found * expected).sum(0)), expected, atol=1e-8)


def test_moments_of_a_part_can_be_taken_away(tmp_path: Path) -> None:
    """Of rows in a file, mapped to be read."""
    features = blobs(2000, dim=20)[0].astype(np.float32)
    file = np.memmap(tmp_path / "features", np.float32, "w+", shape=features.shape)
    file[:] = features
    rows = Rows(np.memmap(tmp_path / "features", np.float32, "r", shape=features.shape), np.arange(len(features)))
    part = np.arange(len(rows)) % 3 == 1

    left = moments_of(rows) - moments_of(rows.at(np.flatnonzero(part)))

    expected = PCA(2).fit(features[~part].astype(np.float64))
    np.testing.assert_allclose(np.abs(principal_components(left, 2).weights), np.abs(expected.components_), atol=1e-6)


# Folds


def test_every_image_is_scored_by_scikit_learns_lda_on_the_other_folds() -> None:
    features, labels = blobs(15)
    fold = folds_of_classes(labels, 3, seed=7)
    spec = RefitSpec(head="lda", features="output", shrinkage="ledoit-wolf", ridge=1e-12)

    found = cross_fit(stage(12, 3), spec, as_images(features), torch.from_numpy(labels), seed=7)

    assert np.bincount(fold).tolist() == [9] * 5
    for k in range(5):
        others = fold != k
        means = np.stack([features[others & (labels == c)].mean(0) for c in range(3)])
        estimator = LedoitWolf(assume_centered=True).fit((features - means[labels])[others])
        reference = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=_Known(estimator.covariance_))
        reference.fit(features[others], labels[others])
        expected = log_softmax(reference.decision_function(features[~others]), axis=1)
        np.testing.assert_allclose(found.log_joints[~others].log_softmax(1), expected, rtol=1e-3, atol=1e-2)


def test_folds_hold_each_class_evenly_and_no_more_than_its_images() -> None:
    labels = np.repeat([0, 1], [4, 101])

    fold = folds_of_classes(labels, 2, seed=0)

    assert np.bincount(fold[labels == 0]).tolist() == [1, 1, 1, 1]
    assert sorted(np.bincount(fold[labels == 1])) == [25, 25, 25, 26]


def test_class_of_a_single_image_cannot_be_judged() -> None:
    with pytest.raises(
        ValueError, match=r"^every class must have at least 2 training images to judge a head by, got 1$"
    ):
        folds_of_classes(np.array([0, 0, 1]), 2, seed=0)


@pytest.mark.parametrize(("kinds", "head"), [(1, "lda"), (3, "mda")])
def test_the_head_is_the_one_under_which_held_out_images_are_likelier(
    kinds: int, head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    features, labels = blobs(90, kinds=kinds)
    spec = RefitSpec(head="auto", dim=6, components="bic", tied=True, shrinkage="ledoit-wolf")

    found = cross_fit(stage(12, 3), spec, as_images(features), torch.from_numpy(labels), seed=0)

    assert found.spec.head == head
    assert found.spec.components == kinds
    pattern = r"held-out log-likelihood an image: lda -?[\d.]+ nats, mda with \d components -?[\d.]+ nats; the head is "
    assert re.search(pattern + head, capsys.readouterr().out)


def test_shrinkage_is_the_one_that_suits_held_out_images(capsys: pytest.CaptureFixture[str]) -> None:
    """Six images a class in 40 dimensions that vary alike: the more of the identity, the better."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 6)
    features = 0.6 * rng.normal(size=(3, 40))[labels] + rng.normal(size=(18, 40))
    images, truth = as_images(features), torch.from_numpy(labels)
    spec = RefitSpec(head="lda", dim=12, shrinkage="cross-fit")

    found = cross_fit(stage(40, 3), spec, images, truth, seed=0)

    tried = {
        share: cross_fit(stage(40, 3), spec.model_copy(update={"shrinkage": share}), images, truth, seed=0)
        for share in ("ledoit-wolf", 0.5, 0.8, 0.9)
    }
    nll = {share: cross_fitted_nll(one.log_joints, truth, 0)[1] for share, one in tried.items()}
    best = min(nll, key=nll.__getitem__)
    assert found.spec.shrinkage == best
    assert torch.equal(found.log_joints, tried[best].log_joints)
    assert capsys.readouterr().out.endswith(f"nats; it is {best}\n")


def test_few_images_get_the_head_that_they_can_fill() -> None:
    features, labels = blobs(5)
    spec = RefitSpec(head="auto", dim=12, components="bic", tied=True, shrinkage="ledoit-wolf")

    found = cross_fit(stage(12, 3), spec, as_images(features), torch.from_numpy(labels), seed=0)
    refitted = refit(stage(12, 3), found.spec, as_images(features), torch.from_numpy(labels), seed=0)

    assert (found.spec.head, found.spec.components) == ("lda", 1)
    assert fit_temperature(found.log_joints, torch.from_numpy(labels)) > 0
    assert (refitted(as_images(features)).log_joints.argmax(1).numpy() == labels).mean() > 0.9


# Recipes


def recipe(**sections: dict) -> Recipe:
    tree = {
        "data": {"name": "digits", "validation": 0.0},
        "encoder": {"kind": "none"},
        "head": {"kind": "lda"},
        "loss": {"kind": "cross-entropy"},
        "fit": {"epochs": 0},
        "refit": {"head": "lda", "features": "output", "shrinkage": "ledoit-wolf"},
        "calibration": {"temperature": "cross-fit"},
    }
    return parse_recipe({name: {**tree.get(name, {}), **sections.get(name, {})} for name in {*tree, *sections}})


def test_cross_fitting_needs_no_validation_split() -> None:
    assert recipe().calibration.temperature == "cross-fit"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"encoder": {"kind": "six-conv", "dim": 3}, "fit": {"epochs": 1}},
            "calibration.temperature cross-fit must go with a [refit] on features that are not learned",
        ),
        (
            {"refit": {"head": "mda", "components": 2}},
            "refit.shrinkage must be 0 for the head mda without tied, got ledoit-wolf",
        ),
        ({"refit": {"head": "auto"}}, "refit.components must be bic or at least 2 for the head auto, got 1"),
    ],
)
def test_what_does_not_go_together_is_refused(sections: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe(**sections)


class _Known:
    """An estimator that has the covariance already."""

    def __init__(self, covariance: FloatArray):
        self.covariance_ = covariance

    def fit(self, _: FloatArray) -> "_Known":
        return self


# What is judged for the tables of held-out images


@pytest.mark.parametrize("dim", [None, 6])
def test_typicality_of_every_image_is_by_what_was_fitted_without_it(dim: int | None) -> None:
    """Its parts; their scale is that of all images, each judged so."""
    features, labels = blobs(20)
    truth, images = torch.from_numpy(labels), as_images(features)
    spec = RefitSpec(head="lda", dim=dim, features="output" if dim is None else "pooled", shrinkage="ledoit-wolf")
    classifier = stage(12, 3)
    classifier.temperature = 2.0
    found = cross_fit(classifier, spec, images, truth, seed=3)

    judged, scale = judge(classifier, found, images, truth, seed=3)

    fold, parts = folds_of_classes(labels, 3, seed=3), np.empty((60, 2))
    for k in range(5):
        own, others = np.flatnonzero(fold == k), np.flatnonzero(fold != k)
        fitted = fit_parts(Evidence(Rows(features.astype(np.float32), others)), labels[others], 3)
        parts[own] = measured(fitted, Evidence(Rows(features.astype(np.float32), own)))
    posterior = (found.log_joints / 2.0).softmax(1)
    expected = score(torch.from_numpy(parts), posterior, 3, Scale.of(parts))
    np.testing.assert_allclose(judged.typicality_scores, expected.numpy(), rtol=1e-5)
    np.testing.assert_allclose(scale.usual.numpy(), np.quantile(parts, 0.9, axis=0))
    np.testing.assert_allclose(judged.label_probabilities, posterior[torch.arange(60), truth].numpy(), rtol=1e-5)
