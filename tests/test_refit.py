"""The refit of a head on frozen features, judged by known mixtures and by scikit-learn."""

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.mixture import GaussianMixture
from training_samples import digits, same_weights

from training.classifier import Architecture, Classifier, build_classifier
from training.covariances import pooled_covariance
from training.evaluate import occupancy_of
from training.recipe import EncoderSpec, HeadSpec
from training.refit import choose_components, fit_head, refit
from training.refit_spec import RefitSpec

FloatArray = NDArray[np.float64]
COVARIANCES = ["spherical", "diagonal", "full"]
OUTPUT = {"features": "output"}  # what `fit_head` is given; only the head matters here


def mixtures(counts: tuple[int, ...] = (900, 1500), seed: int = 0) -> tuple[FloatArray, NDArray[np.int64]]:
    """Features (N, 2) of two classes: two Gaussians with weights 1/3 and 2/3 each, 12 and more apart."""
    rng = np.random.default_rng(seed)
    features, labels = [], []
    for c, count in enumerate(counts):
        for k, share in enumerate((1, 2)):
            size = count * share // 3
            features.append(rng.normal(MEANS[c, k], np.sqrt(VARIANCES[c, k]), (size, 2)))
            labels.append(np.full(size, c))
    return np.concatenate(features), np.concatenate(labels)


MEANS = np.array([[[0.0, 0.0], [12.0, 0.0]], [[0.0, 15.0], [12.0, 18.0]]])
VARIANCES = np.array([[[1.0, 1.0], [4.0, 0.25]], [[0.5, 2.0], [1.0, 3.0]]])


def untrained(head: HeadSpec | None = None, encoder: EncoderSpec | None = None) -> Classifier:
    torch.manual_seed(0)
    encoder = encoder or EncoderSpec(dim=3, width=4)
    classifier = build_classifier(Architecture((1, 8, 8), 10, encoder, head or HeadSpec(kind="lda")))
    classifier.learn_normalisation(digits().images)
    return classifier.eval()


def images_and_labels(count: int = 600) -> tuple[torch.Tensor, torch.Tensor]:
    return digits().images[:count], digits().labels[:count]


# MDA


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_known_mixtures_are_recovered(covariance: str) -> None:
    features, labels = mixtures()
    spec = RefitSpec(components=2, covariance=covariance, ridge=1e-9, **OUTPUT)

    head = fit_head(features, labels, 2, spec, seed=0)

    means = head.gaussians.means.detach().unflatten(0, (2, 2)).numpy()
    lower = head.gaussians.cholesky().detach().unflatten(0, (2, 2))
    covariances = (lower @ lower.mT).numpy()
    weights = head.log_weights().detach().exp().numpy()
    for c in range(2):
        order = np.argsort(means[c, :, 0])  # components come in any order; the true ones differ in their first mean
        np.testing.assert_allclose(means[c, order], MEANS[c], atol=0.25)
        np.testing.assert_allclose(np.diagonal(covariances[c, order], axis1=1, axis2=2), VARIANCES[c], rtol=0.2)
        np.testing.assert_allclose(weights[c, order] / weights[c].sum(), [1 / 3, 2 / 3], atol=0.001)
    np.testing.assert_allclose(weights.sum(1), [900 / 2400, 1500 / 2400], rtol=1e-6)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_posterior_of_mda_is_that_of_scikit_learns_mixtures(covariance: str) -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [100, 150, 250])
    features = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)) + rng.normal(size=(3, 3))[labels]
    spec = RefitSpec(components=2, covariance=covariance, restarts=2, ridge=0.01, **OUTPUT)
    ridge = 0.01 * features.var(0).mean()
    kind = {"diagonal": "diag"}.get(covariance, covariance)
    reference = [
        GaussianMixture(
            2, covariance_type=kind, init_params="k-means++", n_init=2, max_iter=500, reg_covar=ridge, random_state=4
        ).fit(features[labels == c])
        for c in range(3)
    ]
    joints = np.stack([m.score_samples(features) for m in reference], axis=1) + np.log([0.2, 0.3, 0.5])

    head = fit_head(features, labels, 3, spec, seed=4).double()
    scores = head(torch.from_numpy(features))

    log_joints = scores.log_joints.detach().numpy() + head.log_density_constant
    np.testing.assert_allclose(log_joints, joints, rtol=1e-4, atol=1e-4)  # the head's weights are rounded to float32
    responsibilities = scores.component_log_joints.softmax(2).detach().numpy()
    for c in range(3):
        np.testing.assert_allclose(responsibilities[:, c], reference[c].predict_proba(features), atol=1e-4)


def test_bic_finds_the_number_of_components() -> None:
    features, labels = mixtures()
    by_class = [features[labels == c] for c in range(2)]
    singles = [points[points[:, 0] > 6] for points in by_class]
    spec = RefitSpec(components="bic", max_components=4, covariance="diagonal", **OUTPUT)

    assert choose_components(by_class, spec, 0, 2) == 2
    assert choose_components(singles, spec, 0, 2) == 1
    assert fit_head(features, labels, 2, spec, seed=0).components == 2


def test_bic_tries_no_more_components_than_the_images_allow() -> None:
    features, labels = mixtures()
    few = np.concatenate([np.flatnonzero(labels == c)[[0, 1, -1, -2]] for c in range(2)])
    spec = RefitSpec(components="bic", max_components=64, covariance="spherical", **OUTPUT)

    assert fit_head(features[few], labels[few], 2, spec, seed=0).components <= 3


def test_refit_is_decided_by_the_seed() -> None:
    rng = np.random.default_rng(2)
    features, labels = rng.normal(size=(300, 4)), np.arange(300) % 2
    spec = RefitSpec(components=4, restarts=1, **OUTPUT)

    first, again, other = (fit_head(features, labels, 2, spec, seed) for seed in (0, 0, 1))

    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_ridge_is_added_to_variances_that_are_zero() -> None:
    """Every image of a class at one of two points: without a ridge the variances are zero."""
    features = np.array([[0.0, 0.0], [4.0, 4.0]] * 10 + [[20.0, 20.0], [24.0, 28.0]] * 10)
    labels = np.repeat([0, 1], 20)
    ridge = 0.01 * features.var(0).mean()

    for covariance in COVARIANCES:
        spec = RefitSpec(components=2, covariance=covariance, ridge=0.01, **OUTPUT)
        lower = fit_head(features, labels, 2, spec, seed=0).gaussians.cholesky().detach()

        np.testing.assert_allclose((lower @ lower.mT).diagonal(dim1=1, dim2=2), np.full((4, 2), ridge), rtol=1e-4)


@pytest.mark.parametrize("components", [5, 6])
def test_more_components_than_images_are_refused(components: int) -> None:
    features = np.random.default_rng(0).normal(size=(25, 2))
    labels = np.repeat([0, 1], [5, 20])

    with pytest.raises(
        ValueError, match=rf"^refit.components must be less than the images of every class \(5\), got {components}$"
    ):
        fit_head(features, labels, 2, RefitSpec(components=components, **OUTPUT), seed=0)


@pytest.mark.parametrize("spec", [{"head": "lda"}, {"components": "bic"}])
def test_class_of_a_single_image_is_refused(spec: dict) -> None:
    features, labels = np.random.default_rng(0).normal(size=(9, 2)), np.array([0] * 8 + [1])

    with pytest.raises(ValueError, match=r"^refit.components must be less than the images of every class \(1\), got 1"):
        fit_head(features, labels, 2, RefitSpec(**spec, **OUTPUT), seed=0)


# LDA


@pytest.mark.parametrize("solver", ["lsqr", "eigen"])
def test_refitted_lda_is_scikit_learns(solver: str) -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], [50, 150, 200])
    features = rng.normal(size=(400, 4)) @ rng.normal(size=(4, 4)) + rng.normal(size=(3, 4))[labels]
    reference = LinearDiscriminantAnalysis(solver=solver).fit(features, labels)

    head = fit_head(features, labels, 3, RefitSpec(head="lda", ridge=1e-12, **OUTPUT), seed=0).double()

    posterior = head(torch.from_numpy(features)).log_joints.softmax(1).detach()
    np.testing.assert_allclose(posterior, reference.predict_proba(features), atol=1e-5)
    assert (head.kind, head.components) == ("lda", 1)


def test_pooled_covariance_by_hand() -> None:
    """Two classes on a cross: within-class scatter 4 along x (2 points of 4 a class), 1 along y."""
    first = np.array([[-2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    by_class = [first, first + np.array([10.0, 20.0])]

    full, diagonal, spherical = (RefitSpec(head="lda", covariance=one, **OUTPUT) for one in COVARIANCES[::-1])

    np.testing.assert_allclose(pooled_covariance(by_class, full, 0.0, 2), [[[2.0, 0.0], [0.0, 0.5]]])
    np.testing.assert_allclose(pooled_covariance(by_class, diagonal, 0.5, 2), [[2.5, 1.0]])
    np.testing.assert_allclose(pooled_covariance(by_class, spherical, 0.25, 2), [1.5])


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_refitted_lda_holds_means_covariance_and_class_shares(covariance: str) -> None:
    features, labels = mixtures()
    by_class = [features[labels == c] for c in range(2)]

    spec = RefitSpec(head="lda", covariance=covariance, **OUTPUT)

    head = fit_head(features, labels, 2, spec, seed=0)

    np.testing.assert_allclose(head.gaussians.means.detach(), [points.mean(0) for points in by_class], rtol=1e-5)
    lower = head.gaussians.cholesky().detach()
    expected = pooled_covariance(by_class, spec, 1e-3 * features.var(0).mean(), 2)
    matrix = expected[0] if covariance == "full" else expected[0] * np.eye(2)
    np.testing.assert_allclose((lower @ lower.mT)[0], matrix, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(head.prior_logits.softmax(0).detach(), [900 / 2400, 1500 / 2400], rtol=1e-6)


# The classifier around the head


def test_projection_becomes_the_principal_components_of_the_pooled_features() -> None:
    classifier = untrained()
    images, labels = images_and_labels()
    with torch.no_grad():
        pooled = classifier.encoder.trunk(classifier.normalise(images)).double().numpy()
    reference = PCA(5).fit(pooled)

    refitted = refit(classifier, RefitSpec(dim=5, components=2, covariance="diagonal"), images, labels, seed=0)

    features = refitted(images).features.detach().numpy()
    expected = reference.transform(pooled)
    signs = np.sign((features * expected).sum(0))  # a principal component has no sign of its own
    np.testing.assert_allclose(features * signs, expected, atol=1e-4)
    assert refitted.architecture.encoder.dim == refitted.head.dim == 5
    assert refitted.architecture.head == HeadSpec(kind="mda", components=2, covariance="diagonal")
    assert refitted.architecture.encoder.kind == "six-conv"


def test_output_features_keep_their_projection() -> None:
    classifier = untrained()
    images, labels = images_and_labels()

    refitted = refit(classifier, RefitSpec(head="lda", features="output"), images, labels, seed=0)

    torch.testing.assert_close(refitted(images).features, classifier(images).features)
    assert refitted.encoder.projection is classifier.encoder.projection


def test_refit_leaves_the_classifier_as_it_was() -> None:
    classifier, untouched = untrained(), untrained()
    images, labels = images_and_labels()

    refit(classifier, RefitSpec(dim=5, restarts=1, covariance="diagonal"), images, labels, seed=0)

    assert same_weights(classifier, untouched)
    assert classifier.architecture == untouched.architecture


def test_every_component_is_used() -> None:
    images, labels = images_and_labels(2000)

    refitted = refit(untrained(), RefitSpec(dim=8, components=3, covariance="diagonal"), images, labels, seed=0)

    responsibilities = refitted(images).component_log_joints.softmax(2).detach().numpy()
    occupancy = occupancy_of(responsibilities, labels.numpy())
    assert occupancy.shape == (10, 3)
    assert occupancy.min() > 0.02


@pytest.mark.parametrize(
    ("encoder", "kind"),
    [
        (EncoderSpec(kind="mlp", dim=3, hidden=(12,)), "mlp"),
        (EncoderSpec(kind="linear", dim=3), "linear"),
        (EncoderSpec(kind="none", dim=64), "linear"),
    ],
)
def test_every_encoder_can_be_refitted(encoder: EncoderSpec, kind: str) -> None:
    images, labels = images_and_labels()

    refitted = refit(untrained(encoder=encoder), RefitSpec(dim=6, restarts=1), images, labels, seed=0)

    assert refitted.architecture.encoder.kind == kind
    rebuilt = build_classifier(refitted.architecture)
    rebuilt.load_state_dict(refitted.state_dict())
    assert (refitted(images).log_joints.argmax(1) == labels).float().mean() > 0.5


def test_any_head_can_be_refitted() -> None:
    images, labels = images_and_labels()

    for head in (HeadSpec(kind="softmax"), HeadSpec(kind="mda", components=2), HeadSpec(kind="lda")):
        refitted = refit(untrained(head), RefitSpec(dim=4, restarts=1, covariance="diagonal"), images, labels, seed=0)

        assert (refitted.head.kind, refitted.head.components) == ("mda", 1)


def test_refitted_classifier_can_be_trained_on() -> None:
    images, labels = images_and_labels()
    refitted = refit(untrained(), RefitSpec(dim=4, restarts=1, covariance="diagonal"), images, labels, seed=0)

    refitted(images[:4]).log_joints.sum().backward()

    assert all(p.grad is not None for p in itertools.chain(refitted.encoder.parameters(), refitted.head.parameters()))


@pytest.mark.parametrize(("count", "dim"), [(600, 17), (9, 10)])
def test_more_principal_components_than_features_or_images_are_refused(count: int, dim: int) -> None:
    images, labels = images_and_labels(count)

    limits = rf"the number of pooled features \(16\) and of training images \({count}\)"
    with pytest.raises(ValueError, match=rf"^refit.dim must be at most {limits}, got {dim}$"):
        refit(untrained(), RefitSpec(dim=dim), images, labels, seed=0)
